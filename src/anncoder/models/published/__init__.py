"""Published single-cell systems: DCA, SAUCIE, scvis, net-SNE, scScope, AutoImpute."""

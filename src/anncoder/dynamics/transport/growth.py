"""Growth of cells: proliferation and apoptosis scores to rates, doubling times.

Schiebinger et al. 2019, doi 10.1016/j.cell.2019.01.006: birth and death rates are logistic functions of the scores. The
constants are per day, of mouse cells in a dish; growth can be no more than a division every 12 hours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

Array = np.ndarray[Any, Any]

CLIP = 5.0  # largest z-score of a gene
HOURS = 24.0  # of the unit of time of the constants

# of the cell cycle: Tirosh et al. 2016, doi 10.1126/science.aad0501
PROLIFERATION = """
MCM5 PCNA TYMS FEN1 MCM2 MCM4 RRM1 UNG GINS2 MCM6 CDCA7 DTL PRIM1 UHRF1 HELLS RFC2 RPA2 NASP RAD51AP1 GMNN WDR76
SLBP CCNE2 UBR7 POLD3 MSH2 ATAD2 RAD51 RRM2 CDC45 CDC6 EXO1 TIPIN DSCC1 BLM CASP8AP2 USP1 CLSPN POLA1 CHAF1B E2F8
HMGB2 CDK1 NUSAP1 UBE2C BIRC5 TPX2 TOP2A NDC80 CKS2 NUF2 CKS1B MKI67 TMPO CENPF TACC3 SMC4 CCNB2 CKAP2L CKAP2 AURKB
BUB1 KIF11 ANP32E TUBB4B GTSE1 KIF20B HJURP CDCA3 CDC20 TTK CDC25C KIF2C RANGAP1 NCAPD2 DLGAP5 CDCA2 CDCA8 ECT2
KIF23 HMMR AURKA PSRC1 ANLN LBR CKAP5 CENPE CTCF NEK2 G2E3 GAS2L3 CBX5 CENPA
"""
# effectors and regulators of the two pathways of apoptosis
APOPTOSIS = """
APAF1 BAD BAK1 BAX BBC3 BCL2L11 BID BIK BMF CASP1 CASP2 CASP3 CASP4 CASP6 CASP7 CASP8 CASP9 CYCS DAPK1 DIABLO ENDOG
FADD FAS GADD45A GADD45B HRK PMAIP1 RIPK1 TNFRSF10B TNFRSF1A TNFSF10 TP53 TRADD
"""

MOUSE_NAMES = {"TP53": "Trp53"}  # of symbols that differ in more than their case


class RateConstants(NamedTuple):
    """Constants of the logistic functions; rates are per day (natural logarithm)."""

    least: float = 0.3
    range: float = 1.4
    birth_steepness: float = 8.0
    birth_middle: float = 0.25  # score
    death_steepness: float = 20.0
    death_middle: float = 0.1


MOUSE_CELLS = RateConstants()


def genes_of_species(species: str) -> dict[str, list[str]]:
    """Return the symbols of genes of proliferation and apoptosis, for ``"human"`` or ``"mouse"``."""
    lists = {"proliferation": PROLIFERATION, "apoptosis": APOPTOSIS}
    if species == "human":
        return {name: genes.split() for name, genes in lists.items()}
    return {name: [MOUSE_NAMES.get(g, g.capitalize()) for g in genes.split()] for name, genes in lists.items()}


def score(logs: Array) -> Array:
    """Return the mean over genes of z-scores, clipped to +-5, of each cell, (n,).

    Parameters
    ----------
    logs
        Log-normalised expression of the genes, (n, k). Genes that are the same in all cells count as 0. The score
        depends on which cells are given.
    """
    logs = np.asarray(logs, np.float64)
    sd = logs.std(axis=0)
    z = (logs - logs.mean(axis=0)) / np.where(sd > 0, sd, 1)
    return np.asarray(np.clip(z, -CLIP, CLIP).mean(axis=1))


def growth_factor(
    proliferation: Array, apoptosis: Array, *, unit_hours: float = HOURS, constants: RateConstants = MOUSE_CELLS
) -> Array:
    """Return by what factor a cell multiplies in a unit of time, ``exp(birth - death)``, from its scores.

    Parameters
    ----------
    proliferation, apoptosis
        Scores, (n,), as of :func:`score`.
    unit_hours
        Hours in a unit of time.
    constants
        Of the two logistic functions, per day.
    """
    birth = expit(constants.birth_steepness * (np.asarray(proliferation, np.float64) - constants.birth_middle))
    death = expit(constants.death_steepness * (np.asarray(apoptosis, np.float64) - constants.death_middle))
    # the least rates of birth and death are equal, and cancel
    return np.asarray(np.exp(constants.range * (birth - death) * unit_hours / HOURS))


def factor_of_doubling_time(doubling_time: Array | float) -> Array:
    """Return the factor a unit of time of cells that double in this time, in the same unit; infinite: no growth."""
    return np.asarray(np.exp2(1 / np.asarray(doubling_time, np.float64)))

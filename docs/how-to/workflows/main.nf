// Train on one data set, embed others with its model, compare with PCA, and write a report.
//
//     nextflow run main.nf --reference demo_counts.h5ad --labels bulk_labels --queries 'new/*.h5ad'

params.reference = null
params.queries   = null
params.model     = 'count'
params.settings  = '--set n_latent=10'
params.labels    = null
params.layer     = null
params.outdir    = 'results'

def labels = params.labels ? "--labels ${params.labels}" : ''
def layer  = params.layer ? "--layer ${params.layer}" : ''

process CHECK {
    tag "${data.name}"
    publishDir params.outdir, mode: 'copy'

    input:
    path data

    output:
    tuple path(data), path("${data.baseName}.check.json")

    script:
    "anncoder check ${data} ${layer} --json > ${data.baseName}.check.json"
}

process TRAIN {
    publishDir params.outdir, mode: 'copy'
    cpus 2
    memory '8 GB'

    input:
    tuple path(data), path(checked)

    output:
    path 'reference.h5ad', emit: data
    path 'reference.anncoder', emit: run

    script:
    """
    anncoder train ${data} -o reference.h5ad --model ${params.model} ${params.settings} ${layer} \\
        --no-evaluation --seed 0 --device cpu --threads ${task.cpus}
    """
}

process EMBED {
    tag "${data.name}"
    publishDir params.outdir, mode: 'copy'
    cpus 2

    input:
    tuple path(data), path(checked)
    path run

    output:
    path "${data.baseName}.embedded.h5ad"

    script:
    "anncoder embed ${run}/model ${data} ${layer} -o ${data.baseName}.embedded.h5ad --device cpu --threads ${task.cpus}"
}

process EVALUATE {
    publishDir params.outdir, mode: 'copy'
    cpus 2

    input:
    path data
    path run

    output:
    path 'evaluation.json'

    script:
    "anncoder evaluate ${run}/model ${data} ${labels} ${layer} -o evaluation.json --device cpu --threads ${task.cpus}"
}

process REPORT {
    publishDir params.outdir, mode: 'copy'
    cpus 2

    input:
    path data
    path run

    output:
    path 'report.html'

    script:
    "anncoder report ${data} ${labels} ${layer} -o report.html --device cpu --threads ${task.cpus}"
}

workflow {
    reference = Channel.fromPath(params.reference, checkIfExists: true, type: 'any')
    queries   = params.queries ? Channel.fromPath(params.queries, checkIfExists: true, type: 'any') : Channel.empty()

    checked = CHECK(reference.mix(queries))
    name    = file(params.reference).name
    parts   = checked.branch { reference: it[0].name == name; query: true }

    TRAIN(parts.reference)
    EMBED(parts.query, TRAIN.out.run.first())
    EVALUATE(reference, TRAIN.out.run)
    REPORT(TRAIN.out.data, TRAIN.out.run)
}

"""The codes of findings, each with its title, meaning, weight and remedy."""

from __future__ import annotations

from auditor.rules.rule import Rule

_RECONSTRUCTION = ("NISTAML.032", "AML.T0024.001 (closest)", "ML03:2023")

_AGGREGATE = (
    "Send only sums over many clients (secure aggregation), or clip and add calibrated noise "
    "(DP-SGD) before the gradient leaves the client; then run the audit again."
)

FINDINGS: tuple[Rule, ...] = (
    Rule(
        "GA101",
        "Every label of the batch is in the gradient",
        "The labels the client trained on follow from the gradient of the classifier layer.",
        "Labels are personal data where a class says something about a person, and they are "
        "the starting point of every reconstruction.",
        "Do not send the gradient of the last layer's bias and weight in the clear. " + _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA102",
        "Some labels of the batch are in the gradient",
        "For some classes it is proved that the client's batch holds them, and how many at least.",
        "Knowing that a class occurs is already a disclosure about the client.",
        "Larger batches hide counts, not presence. " + _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA103",
        "The labels can be guessed from the gradient",
        "A best multiset of labels was derived; it is an estimate, not a proof.",
        "An attacker would start from the same guess.",
        _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA201",
        "The training input was rebuilt from the gradient",
        "The gradient of the rebuilt input equals the dump in half of its digits or more, in "
        "every tensor, and independent restarts arrived at the same input.",
        "Whoever sees this gradient sees the client's data.",
        _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA202",
        "An input that explains the gradient was found",
        "The gradient of the rebuilt input is close to the dump, but no independent restart "
        "confirms that it is the only such input.",
        "It is likely, not certain, that the client's data can be read off.",
        "Run again with --preset deep for more restarts. " + _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA203",
        "The rebuilt input resembles the true one",
        "Measured against the truth that the user supplied.",
        "This is the leak itself, seen from the client's side.",
        _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA204",
        "Inputs of the batch were read off one by one",
        "Each lies in the space of the rows of a linear layer's gradient; verified are those that "
        "cannot be mixtures: rows are their multiples by factors that the model derives from "
        "them, or all their pixels are multiples of 1/255.",
        "Whoever sees this gradient sees these inputs; the size of the batch did not hide them.",
        "Do not send the gradient of the first linear layer in the clear. " + _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA205",
        "The training input was rebuilt through a defence",
        "The gradient was noised, pruned, rounded or clipped. That of the rebuilt input explains "
        "it up to what the defence does, and independent restarts arrived at the same input.",
        "At this strength the defence does not keep the data from whoever allows for it.",
        _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA206",
        "Statistics of the private batch came along",
        "Batch norm's running mean and variance moved in one training step. What they were before "
        "and the momentum are in the model, so the mean and variance of every channel over the "
        "client's batch follow, without any gradient.",
        "They say how bright, how colourful and how rich in contrast the data are, and what the "
        "network sees in them on average, whatever is done to the gradient. In an attack they fix "
        "what batch norm hides from the gradient.",
        "Do not send running statistics: keep batch norm local to the client, as FedBN does (Li et "
        "al. 2021, arXiv:2102.07623), freeze it, or use group norm or layer norm.",
        _RECONSTRUCTION,
    ),
    Rule(
        "GA501",
        "The exact text was rebuilt from the gradient",
        "The gradient of the rebuilt sequences of tokens, derived again, equals the dump in half "
        "of its digits or more, in every tensor; with the most similar other token in one place "
        "it does not.",
        "Whoever sees this gradient reads what the client wrote: every name, number and word.",
        _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA502",
        "A text that explains the gradient was found",
        "What the sequences make the first two blocks read lies in the space that the gradients of "
        "these blocks span, or the gradient of the whole batch is close to the dump; nothing "
        "rules out every other text.",
        "It is likely, not certain, that the client's text can be read off.",
        "Say the batch size if it is known, and run again with --preset deep. " + _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA503",
        "The rebuilt text resembles the true one",
        "Measured against the truth that the user supplied.",
        "This is the leak itself, seen from the client's side.",
        _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA504",
        "The words of the batch are in the gradient",
        "The gradient of the embedding has a row for every token of the vocabulary; rows of tokens "
        "that do not occur are zero. Which tokens occur can be read off, not their order.",
        "Names, numbers and rare words say much about a client without any order.",
        "Freeze the embedding or do not send its gradient. " + _AGGREGATE,
        _RECONSTRUCTION,
    ),
    Rule(
        "GA401",
        "The model holds an imprint layer",
        "Rows of a linear layer are parallel and differ in their biases alone, so each input of a "
        "batch falls into a bin. Initialisation and training do not make that (Fowl et al. 2021).",
        "The gradients of neighbouring rows differ by the inputs in one bin: with more bins than "
        "samples, most inputs of a batch can be read off, whatever its size.",
        "Do not train this model. Compare it with the architecture that was agreed on, and ask its "
        "sender what the layer is for.",
        _RECONSTRUCTION,
    ),
    Rule(
        "GA402",
        "The model holds trap weights",
        "In far more rows of a linear layer than chance makes, exactly half of the weights are "
        "negative and the other half is smaller (Boenisch et al. 2021).",
        "Such a row fires for few inputs; where it fires for one of the batch, its gradient is "
        "that input.",
        "Do not train this model. Train from an initialisation that you drew yourself, or ask its "
        "sender how the weights were made.",
        _RECONSTRUCTION,
    ),
    Rule(
        "GA403",
        "The classifier singles out one class",
        "The weights of all other classes are next to nothing, or a bias keeps one class out of "
        "reach of all others (class fishing, Wen et al. 2022).",
        "The gradient of a large batch then is that of its few samples of one class, and averaging "
        "protects them no longer.",
        "Do not train this model. Draw a fresh classifier, or ask its sender how the weights were "
        "made.",
        _RECONSTRUCTION,
    ),
    Rule(
        "GA404",
        "Convolutions pass the input on unchanged",
        "From the input to a linear layer, a kernel of each convolution consists of one weight for "
        "each input channel (Boenisch et al. 2021).",
        "The linear layer sees the pixels, so whatever is read from its gradient is the picture. "
        "Initialisation as an identity (Dirac) does the same without intent.",
        "Ask the model's sender how its kernels were made, or draw them yourself.",
        _RECONSTRUCTION,
    ),
)

"""Whose taste: reward heads that learn one person from a few comparisons, and how much people disagree.

    pairs = PreferencePairs.build(features, index, label, users)      # frozen features [N, D]
    head = fit_low_rank(pairs, rank=4)                                # or fit_ideal_points(pairs, prototypes=3)
    anna = head.fit_user(her_pairs)                                   # milliseconds: a mean and a covariance
    predict(head, anna, other_pairs).probability                      # [P], honest about what is not known
    choose_pair(head, anna, candidates).index                         # the question that teaches most

`records` pairs; `evidence` repeated and contradictory answers; `low_rank` LoRe-style heads; `ideal_points` PAL-style
heads; `posterior` MAP, Laplace covariance, prediction, active choice; `curve` accuracy against number of pairs;
`disagreement` Krippendorff's alpha; `files` saving and loading.
"""

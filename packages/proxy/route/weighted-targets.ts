/** How many choices are made evenly: of this many in a row, each stretch of [0, 1) as long as one of them gets exactly one. */
const blockSize = 64;

/**
 * Chooses among clusters by weight. Chance decides each choice, but not their sum: the choices of a block are spread evenly over the weights and come in random order, so that a canary gets its
 * share of a hundred requests and not only of a million (stratified sampling). Callers that each choose by such an object remain independent of each other, which sequences that are even by themselves
 * (round robin, multiples of the golden ratio) would not be: along a chain of services, canaries would meet always or never.
 */
export class WeightedTargets<Choice extends { readonly weight: number }> {
  readonly targets: readonly Choice[];
  readonly #total: number;
  /** The stretches of the block: those that had their choice come first. Made by the first choice: most routes have one target. */
  #stretches: Uint8Array | undefined;
  #chosen = 0;

  constructor(targets: readonly Choice[]) {
    this.targets = targets;
    this.#total = targets.reduce((sum, target) => sum + target.weight, 0);
  }

  /** `random` is uniform in [0, 1), and so is each choice, seen alone. */
  pick(random: () => number): Choice | undefined {
    if (this.targets.length === 1) return this.targets[0];
    let at = this.#next(random) * this.#total;
    for (const target of this.targets) {
      at -= target.weight;
      if (at < 0) return target;
    }
    return this.targets.at(-1);
  }

  /** One step of Fisher and Yates' shuffle, and a place within the stretch that it gives. */
  #next(random: () => number): number {
    const stretches = (this.#stretches ??= Uint8Array.from({ length: blockSize }, (_, i) => i));
    const first = this.#chosen;
    const chosen = first + Math.floor(random() * (blockSize - first));
    const stretch = stretches[chosen]!;
    stretches[chosen] = stretches[first]!;
    stretches[first] = stretch;
    this.#chosen = (first + 1) % blockSize;
    return (stretch + random()) / blockSize;
  }
}

/**
 * Finds what a selector selects without a look at everything else: by the rarest of its labels. Selectors and labelled objects are as many as users like,
 * so that comparing each with each would cost their product.
 */
export class LabelIndex<Item> {
  readonly #all: Item[];
  readonly #byNamespace: Map<string, Item[]>;
  readonly #byLabel: Map<string, Item[]>;
  readonly #labelsOf: (item: Item) => Readonly<Record<string, string>>;

  constructor(items: readonly Item[], namespaceOf: (item: Item) => string, labelsOf: (item: Item) => Readonly<Record<string, string>>) {
    this.#all = [...items];
    this.#byNamespace = new Map();
    this.#byLabel = new Map();
    this.#labelsOf = labelsOf;
    for (const item of items) {
      const namespace = namespaceOf(item);
      addTo(this.#byNamespace, namespace, item);
      for (const [name, value] of Object.entries(labelsOf(item))) {
        addTo(this.#byLabel, labelKey(namespace, name, value), item);
        addTo(this.#byLabel, labelKey('', name, value), item);
      }
    }
  }

  /** All that have these labels, in a namespace or (undefined) in any, in the order that they were given in. */
  matching(namespace: string | undefined, labels: Readonly<Record<string, string>> | undefined): readonly Item[] {
    const wanted = Object.entries(labels ?? {});
    const candidates = this.#candidates(namespace, wanted);
    return wanted.length < 2 ? candidates : candidates.filter((item) => this.#has(item, wanted));
  }

  has(namespace: string | undefined, labels: Readonly<Record<string, string>> | undefined): boolean {
    const wanted = Object.entries(labels ?? {});
    return this.#candidates(namespace, wanted).some((item) => this.#has(item, wanted));
  }

  #candidates(namespace: string | undefined, wanted: readonly (readonly [string, string])[]): readonly Item[] {
    let fewest: readonly Item[] = namespace === undefined ? this.#all : (this.#byNamespace.get(namespace) ?? []);
    for (const [name, value] of wanted) {
      const found = this.#byLabel.get(labelKey(namespace ?? '', name, value)) ?? [];
      if (found.length <= fewest.length) fewest = found;
    }
    return fewest;
  }

  #has(item: Item, wanted: readonly (readonly [string, string])[]): boolean {
    const labels = this.#labelsOf(item);
    return wanted.every(([name, value]) => labels[name] === value);
  }
}

const labelKey = (namespace: string, name: string, value: string) => `${namespace}\0${name}\0${value}`;

function addTo<Item>(map: Map<string, Item[]>, key: string, item: Item): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [item]);
  else list.push(item);
}

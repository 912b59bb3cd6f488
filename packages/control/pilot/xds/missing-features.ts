import type { DescField, DescMessage } from '@bufbuild/protobuf';
import { currentFeatures } from '@mizzen/envoy-api';

/**
 * A proxy reports what it refuses by these words (packages/proxy/xds/supported-fields.ts); releases before the declared features did so too. Each
 * match begins at a word, so that the cost is linear in what the proxy says.
 */
const refusedField = /\b(\w+) of (\w+) is not supported/g;
const refusedFilter = /the (?:HTTP|network) filter ([\w.-]+) is not supported/g;
/** Of one proxy. More would mean that its refusals are about something else. */
const maxLearnedFeatures = 100;

/** What this control plane may send and one proxy does not know: by the features that the proxy declares, and by what it has refused. */
export class MissingFeatures {
  readonly #filters: Set<string>;
  /** `TYPE.localName`. */
  readonly #declared: Set<string>;
  /** `NAME.proto_name`, of refusals: they name messages without their package. */
  readonly #learned: Set<string>;

  /** `clientFeatures` of the node. Empty, for Envoy and older releases: nothing is known to be missing. */
  constructor(clientFeatures: readonly string[]) {
    this.#filters = new Set();
    this.#declared = new Set();
    this.#learned = new Set();
    const theirs = new Map(clientFeatures.map(partsOf));
    if (![...theirs.keys()].some((feature) => feature.startsWith('filter/'))) return;
    for (const feature of currentFeatures) {
      const [name, fields] = partsOf(feature);
      if (fields === undefined) {
        if (!theirs.has(name)) this.#filters.add(name.slice('filter/'.length));
        continue;
      }
      const known = new Set(theirs.get(name)?.split(','));
      for (const field of fields.split(',')) if (!known.has(field)) this.#declared.add(`${name.slice('fields/'.length)}.${field}`);
    }
  }

  get isEmpty(): boolean {
    return this.#filters.size === 0 && this.#declared.size === 0 && this.#learned.size === 0;
  }

  hasFilter(name: string): boolean {
    return this.#filters.has(name);
  }

  hasField(message: DescMessage, field: DescField): boolean {
    return this.#declared.has(`${message.typeName}.${field.localName}`) || this.#learned.has(`${message.name}.${field.name}`);
  }

  /** Takes features from what a proxy says that it refuses. Whether any of them is new. */
  learn(refusal: string): boolean {
    const before = this.#learned.size + this.#filters.size;
    if (before >= maxLearnedFeatures) return false;
    for (const [, name] of refusal.matchAll(refusedFilter)) this.#filters.add(name!);
    for (const [, field, message] of refusal.matchAll(refusedField)) this.#learned.add(`${message}.${field}`);
    return this.#learned.size + this.#filters.size > before;
  }
}

function partsOf(feature: string): [name: string, fields: string | undefined] {
  const [name = '', fields] = feature.split('=', 2);
  return [name, fields];
}

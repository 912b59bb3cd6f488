import type { Subscription } from '@mizzen/envoy-api';
import { compileCel } from './bounded-cel.ts';
import type { CloudEvent } from './cloud-events.ts';

/** Chooses the path for an event: the first rule whose CEL expression over `event` is true, else the default. */
export class EventRouter {
  readonly #rules: readonly { readonly matches: (event: CloudEvent) => boolean; readonly path: string }[];
  readonly #defaultPath: string;

  /** Throws Error where a rule is not a valid CEL expression. */
  constructor({ rules, defaultPath }: Pick<Subscription, 'rules' | 'defaultPath'>) {
    this.#rules = rules.map(({ match, path }) => ({ path, matches: compile(match) }));
    this.#defaultPath = defaultPath;
  }

  get isPlain(): boolean {
    return this.#rules.length === 0;
  }

  /** '': there is none for it. */
  pathFor(event: CloudEvent): string {
    for (const { matches, path } of this.#rules) if (matches(event)) return path;
    return this.#defaultPath;
  }
}

/** A rule without a condition matches everything: it takes the place of the default, and what follows it is not reached. */
export function routing(
  rules: readonly { readonly match?: string; readonly path?: string }[],
  defaultPath: string,
): { readonly rules: readonly { readonly match: string; readonly path: string }[]; readonly defaultPath: string } {
  const usable = rules.flatMap(({ match = '', path = '' }) => (path === '' ? [] : [{ match, path }]));
  const open = usable.findIndex(({ match }) => match === '');
  return open < 0 ? { rules: usable, defaultPath } : { rules: usable.slice(0, open), defaultPath: usable[open]!.path };
}

function compile(expression: string): (event: CloudEvent) => boolean {
  const evaluate = compileCel(expression);
  // A field that an event does not have makes a rule that asks for it not match.
  return (event) => {
    try {
      return evaluate({ event: withIntegers(event) }) === true;
    } catch {
      return false;
    }
  };
}

/** CEL tells whole numbers from others; JSON does not. What is written as a whole number is meant as one. */
function withIntegers(value: unknown): unknown {
  if (typeof value === 'number') return Number.isSafeInteger(value) ? BigInt(value) : value;
  if (Array.isArray(value)) return value.map(withIntegers);
  if (typeof value === 'object' && value !== null) return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, withIntegers(member)]));
  return value;
}

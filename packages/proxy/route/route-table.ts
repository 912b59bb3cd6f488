import type { NeedsSecrets } from '../filters/generic-secrets.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { HasMetadata } from './metadata-matcher.ts';
import { PathIndex } from './path-index.ts';
import type { Route } from './route.ts';

/** A compiled RouteConfiguration: host to virtual host to route, as Envoy searches it (route.proto, `VirtualHost.domains`). */
export class VirtualHost {
  readonly name: string;
  readonly routes: readonly Route[];
  /** Plain HTTP is answered with a redirect to https. */
  readonly requiresTls: boolean;
  /** Requests carry how often they have been sent (`x-envoy-attempt-count`). */
  readonly countsAttempts: boolean;
  /** So do answers. */
  readonly tellsAttempts: boolean;
  /** The service behind it, for metrics: host, name, namespace. */
  readonly service: ServiceName | undefined;
  /** Which route is found decides which policies a request is under. */
  readonly hasFilterConfigs: boolean;
  readonly #index: PathIndex;

  constructor(fields: Omit<VirtualHost, 'find' | 'hasFilterConfigs'>) {
    this.name = fields.name;
    this.routes = fields.routes;
    this.requiresTls = fields.requiresTls;
    this.countsAttempts = fields.countsAttempts;
    this.tellsAttempts = fields.tellsAttempts;
    this.service = fields.service;
    this.hasFilterConfigs = fields.routes.some(({ filterConfigs }) => filterConfigs !== undefined);
    this.#index = new PathIndex(fields.routes);
  }

  /** `metadata`: what filters have found out so far. */
  find(head: RequestHead, metadata?: HasMetadata): Route | undefined {
    return this.#index.find(head, metadata);
  }
}

function* secretNamesOf({ filterConfigs, action }: Route): Generator<string> {
  const targets = action.kind === 'forward' ? action.targets.targets : [];
  for (const configs of [filterConfigs, ...targets.map((target) => target.filterConfigs)])
    if (configs !== undefined) for (const config of configs.values()) yield* (config as NeedsSecrets).secretNames ?? [];
}

export interface ServiceName {
  readonly host: string;
  readonly name: string;
  readonly namespace: string;
}

/** Authorities that were not found as they were written are remembered up to this many. */
const maxRemembered = 1_000;

export class RouteTable {
  readonly name: string;
  /** Generic secrets that filters use on its routes. */
  readonly secretNames: readonly string[];
  readonly #ignoresPort: boolean;
  readonly #exact: ReadonlyMap<string, VirtualHost>;
  /** `*.example.com`, without the star. */
  readonly #suffixes: AffixLookup;
  /** `example.*`, without the star. */
  readonly #prefixes: AffixLookup;
  readonly #any: VirtualHost | undefined;
  /** What was found for authorities that are no exact domain: `null` is nothing. */
  readonly #remembered: Map<string, VirtualHost | null>;

  /** `ignoresPort`: an authority's port plays no part (`ignore_port_in_host_matching`). */
  constructor(name: string, ignoresPort: boolean, hosts: readonly { readonly domains: readonly string[]; readonly host: VirtualHost }[]) {
    this.name = name;
    this.secretNames = [...new Set(hosts.flatMap(({ host }) => host.routes.flatMap((route) => [...secretNamesOf(route)])))];
    this.#ignoresPort = ignoresPort;
    const exact = new Map<string, VirtualHost>();
    const suffixes = new Map<string, VirtualHost>();
    const prefixes = new Map<string, VirtualHost>();
    let any: VirtualHost | undefined;
    for (const { domains, host } of hosts) {
      for (const domain of domains) {
        const lowered = domain.toLowerCase();
        if (lowered === '*') any = host;
        else if (lowered.startsWith('*')) suffixes.set(lowered.slice(1), host);
        else if (lowered.endsWith('*')) prefixes.set(lowered.slice(0, -1), host);
        else exact.set(lowered, host);
      }
    }
    this.#exact = exact;
    this.#suffixes = new AffixLookup(suffixes, (text, length) => text.slice(-length));
    this.#prefixes = new AffixLookup(prefixes, (text, length) => text.slice(0, length));
    this.#any = any;
    this.#remembered = new Map();
  }

  /** The virtual host for an authority: exact first, then the longest suffix, the longest prefix, then `*`. */
  findHost(authority: string): VirtualHost | undefined {
    const found = this.#exact.get(authority);
    if (found !== undefined) return found;
    const remembered = this.#remembered.get(authority);
    if (remembered !== undefined) return remembered ?? undefined;
    const host = this.#search(normalizeAuthority(authority, this.#ignoresPort));
    // Whoever makes up names can only make this forget.
    if (this.#remembered.size >= maxRemembered) this.#remembered.clear();
    this.#remembered.set(authority, host ?? null);
    return host;
  }

  #search(authority: string): VirtualHost | undefined {
    return this.#exact.get(authority) ?? this.#suffixes.find(authority) ?? this.#prefixes.find(authority) ?? this.#any;
  }
}

/** The longest beginning (or end) of a text that a host is known by. */
class AffixLookup {
  readonly #hosts: ReadonlyMap<string, VirtualHost>;
  /** Lengths of the texts that there are, the longest first. */
  readonly #lengths: readonly number[];
  readonly #cut: (text: string, length: number) => string;

  constructor(hosts: ReadonlyMap<string, VirtualHost>, cut: (text: string, length: number) => string) {
    this.#hosts = hosts;
    this.#lengths = [...new Set([...hosts.keys()].map((text) => text.length))].sort((a, b) => b - a);
    this.#cut = cut;
  }

  /** The star stands for at least one character. */
  find(text: string): VirtualHost | undefined {
    for (const length of this.#lengths) {
      if (length >= text.length) continue;
      const host = this.#hosts.get(this.#cut(text, length));
      if (host !== undefined) return host;
    }
    return undefined;
  }
}

/** Lower case, and without the dot that ends a fully qualified name: `Reviews.default.:9080` is `reviews.default:9080`. */
function normalizeAuthority(authority: string, ignoresPort: boolean): string {
  const lowered = authority.toLowerCase().replace(/\.(?=:\d+$|$)/, '');
  return ignoresPort ? lowered.replace(/:\d+$/, '') : lowered;
}

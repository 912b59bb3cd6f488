import type { RequestHead } from '../message/request-head.ts';
import type { Route } from './route.ts';

/** A compiled RouteConfiguration: host to virtual host to route, as Envoy searches it (route.proto, `VirtualHost.domains`). */
export class VirtualHost {
  readonly name: string;
  readonly routes: readonly Route[];
  /** Plain HTTP is answered with a redirect to https. */
  readonly requiresTls: boolean;
  /** The service behind it, for metrics: host, name, namespace. */
  readonly service: ServiceName | undefined;

  constructor(name: string, routes: readonly Route[], requiresTls: boolean, service: ServiceName | undefined) {
    this.name = name;
    this.routes = routes;
    this.requiresTls = requiresTls;
    this.service = service;
  }

  find(head: RequestHead): Route | undefined {
    const query = head.target.indexOf('?');
    const path = query < 0 ? head.target : head.target.substring(0, query);
    for (let i = 0; i < this.routes.length; i++) if (this.routes[i]!.matches(head, path)) return this.routes[i];
    return undefined;
  }
}

export interface ServiceName {
  readonly host: string;
  readonly name: string;
  readonly namespace: string;
}

export class RouteTable {
  readonly name: string;
  readonly #exact: ReadonlyMap<string, VirtualHost>;
  /** `*.example.com` by decreasing length. */
  readonly #suffixes: readonly (readonly [string, VirtualHost])[];
  /** `example.*` by decreasing length. */
  readonly #prefixes: readonly (readonly [string, VirtualHost])[];
  readonly #any: VirtualHost | undefined;

  constructor(name: string, hosts: readonly { readonly domains: readonly string[]; readonly host: VirtualHost }[]) {
    this.name = name;
    const exact = new Map<string, VirtualHost>();
    const suffixes: [string, VirtualHost][] = [];
    const prefixes: [string, VirtualHost][] = [];
    let any: VirtualHost | undefined;
    for (const { domains, host } of hosts) {
      for (const domain of domains) {
        const lowered = domain.toLowerCase();
        if (lowered === '*') any = host;
        else if (lowered.startsWith('*')) suffixes.push([lowered.slice(1), host]);
        else if (lowered.endsWith('*')) prefixes.push([lowered.slice(0, -1), host]);
        else exact.set(lowered, host);
      }
    }
    const longestFirst = (a: [string, VirtualHost], b: [string, VirtualHost]) => b[0].length - a[0].length;
    this.#exact = exact;
    this.#suffixes = suffixes.sort(longestFirst);
    this.#prefixes = prefixes.sort(longestFirst);
    this.#any = any;
  }

  /** The virtual host for an authority: exact first, then the longest suffix, the longest prefix, then `*`. */
  findHost(authority: string): VirtualHost | undefined {
    const found = this.#exact.get(authority);
    if (found !== undefined) return found;
    const lowered = normalizeAuthority(authority);
    const exact = this.#exact.get(lowered);
    if (exact !== undefined) return exact;
    for (const [suffix, host] of this.#suffixes) if (lowered.endsWith(suffix) && lowered.length > suffix.length) return host;
    for (const [prefix, host] of this.#prefixes) if (lowered.startsWith(prefix) && lowered.length > prefix.length) return host;
    return this.#any;
  }
}

/** Lower case, and without the dot that ends a fully qualified name: `Reviews.default.:9080` is `reviews.default:9080`. */
function normalizeAuthority(authority: string): string {
  return authority.toLowerCase().replace(/\.(?=:\d+$|$)/, '');
}

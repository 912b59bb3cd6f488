import net from 'node:net';
import type { ConnectionSettings } from '../http/connection-settings.ts';
import type { HeldVisitor } from '../http/http-connection.ts';
import type { ServerTls } from '../tls/server-tls.ts';
import type { ConnectionInfo } from './connection-info.ts';

/** One filter chain of a listener: which connections it takes, and what becomes of them. Built by ./compile-filter-chain.ts. */
export interface FilterChain {
  readonly name: string;
  /** Match, transport and kind of filter: chains with the same signature differ only in what they do with HTTP. */
  readonly signature: string;
  /** Takes over what `newer`, a chain with the same signature, does with HTTP; connections stay and follow at their next request. */
  adopt(newer: FilterChain): void;
  /** What the chain does with HTTP now; undefined for chains that carry bytes. */
  readonly settings: ConnectionSettings | undefined;
  readonly match: FilterChainMatch;
  readonly tls: ServerTls | undefined;
  /** Takes a connection, TLS included; `first` are bytes that the listener filters have read already. */
  accept(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void;
  /** Connections end with the request they are serving, idle ones now, or `gently` with their next one. */
  drain(gently: boolean): void;
  closeAll(): void;
  activeConnections(): number;
  /** Visits what waits for slow readers. */
  held(visit: HeldVisitor): void;
  sweep(now: number): void;
  close(): void;
}

/** Envoy listener_components.proto `FilterChainMatch`; what is absent matches everything. */
export interface FilterChainMatch {
  readonly destinationPort: number | undefined;
  readonly destinations: AddressRanges | undefined;
  /** Lower case, `*.example.com` allowed; empty matches any. */
  readonly serverNames: readonly string[];
  /** '' matches any; `tls` or `raw_buffer` need the TLS inspector. */
  readonly transportProtocol: '' | 'tls' | 'raw_buffer';
  readonly applicationProtocols: readonly string[];
  readonly sources: AddressRanges | undefined;
  readonly sourcePorts: readonly number[];
}

/** A set of CIDR ranges; the longest prefix that holds an address says how well it matched. */
export class AddressRanges {
  readonly #ranges: readonly { readonly prefixLength: number; readonly list: net.BlockList }[];

  constructor(ranges: readonly { readonly address: string; readonly prefixLength: number }[]) {
    this.#ranges = ranges
      .map(({ address, prefixLength }) => {
        const list = new net.BlockList();
        list.addSubnet(address, prefixLength, net.isIPv6(address) ? 'ipv6' : 'ipv4');
        return { prefixLength, list };
      })
      .sort((a, b) => b.prefixLength - a.prefixLength);
  }

  /** The length of the longest prefix that holds `address`, or -1. */
  longestMatch(address: string): number {
    const plain = address.startsWith('::ffff:') && address.includes('.') ? address.slice(7) : address;
    const family = net.isIPv6(plain) ? 'ipv6' : 'ipv4';
    return this.#ranges.find(({ list }) => list.check(plain, family))?.prefixLength ?? -1;
  }
}

/**
 * The most specific chain for a connection. Criteria count in Envoy's order: destination port, destination address, server name,
 * transport protocol, application protocols, source address, source port; the first that tells two chains apart decides.
 */
export function matchFilterChain(chains: readonly FilterChain[], info: ConnectionInfo): FilterChain | undefined {
  // The usual case, and the one that must be cheap: one chain that takes everything.
  let best: FilterChain | undefined;
  let bestScore: readonly number[] = [];
  for (const chain of chains) {
    const score = scoreOf(chain.match, info);
    if (score === undefined) continue;
    if (best === undefined || isHigher(score, bestScore)) {
      best = chain;
      bestScore = score;
    }
  }
  return best;
}

function scoreOf(match: FilterChainMatch, info: ConnectionInfo): readonly number[] | undefined {
  if (match.destinationPort !== undefined && match.destinationPort !== info.localPort) return undefined;
  const destination = match.destinations === undefined ? 0 : match.destinations.longestMatch(info.localAddress) + 1;
  if (match.destinations !== undefined && destination === 0) return undefined;
  const name = scoreOfName(match.serverNames, info.serverName);
  if (name < 0) return undefined;
  if (match.transportProtocol !== '' && (match.transportProtocol === 'tls') !== info.isTls) return undefined;
  const protocols = match.applicationProtocols;
  if (protocols.length > 0 && !protocols.some((protocol) => info.applicationProtocols.includes(protocol))) return undefined;
  const source = match.sources === undefined ? 0 : match.sources.longestMatch(info.remoteAddress) + 1;
  if (match.sources !== undefined && source === 0) return undefined;
  if (match.sourcePorts.length > 0 && !match.sourcePorts.includes(info.remotePort)) return undefined;
  return [
    match.destinationPort === undefined ? 0 : 1,
    destination,
    name,
    match.transportProtocol === '' ? 0 : 1,
    protocols.length > 0 ? 1 : 0,
    source,
    match.sourcePorts.length > 0 ? 1 : 0,
  ];
}

function isHigher(a: readonly number[], b: readonly number[]): boolean {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i]! > b[i]!;
  return false;
}

/** -1: no match; 0: any name; otherwise the longer the name that matched, the higher, exact names above all wildcards. */
function scoreOfName(names: readonly string[], serverName: string): number {
  if (names.length === 0) return 0;
  let score = -1;
  for (const name of names) {
    if (name === serverName) return 10_000;
    if (name.startsWith('*.') && serverName.endsWith(name.slice(1)) && serverName.length > name.length - 1) score = Math.max(score, name.length);
  }
  return score;
}

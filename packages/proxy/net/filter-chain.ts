import type net from 'node:net';
import type { ConnectionSettings } from '../http/connection-settings.ts';
import type { ServerTls } from '../tls/server-tls.ts';

/** One filter chain of a listener: which connections it takes, and what becomes of them. Built by ./compile-listener.ts. */
export interface FilterChain {
  readonly name: string;
  /** Match, transport and kind of filter: chains with the same signature differ only in what they do with HTTP. */
  readonly signature: string;
  /** Takes over what `newer`, a chain with the same signature, does with HTTP; connections stay and follow at their next request. */
  adopt(newer: FilterChain): void;
  /** What the chain does with HTTP now; undefined for chains that carry bytes. */
  readonly settings: ConnectionSettings | undefined;
  /** '' matches any; `tls` or `raw_buffer` need the TLS inspector. */
  readonly transportProtocol: '' | 'tls' | 'raw_buffer';
  /** Lower case, `*.example.com` allowed; empty matches any. */
  readonly serverNames: readonly string[];
  readonly applicationProtocols: readonly string[];
  readonly tls: ServerTls | undefined;
  /** Takes a plain connection; `first` are bytes that the inspector has read already. */
  acceptPlain(socket: net.Socket, first: Buffer | undefined): void;
  drain(): void;
  closeAll(): void;
  activeConnections(): number;
  sweep(now: number): void;
  close(): void;
}

/** The most specific chain for a connection, as Envoy matches: server name, then transport protocol, then application protocols. */
export function matchFilterChain(chains: readonly FilterChain[], isTls: boolean, serverName: string, alpn: readonly string[]): FilterChain | undefined {
  let best: FilterChain | undefined;
  let bestScore = -1;
  for (const chain of chains) {
    if (chain.transportProtocol !== '' && (chain.transportProtocol === 'tls') !== isTls) continue;
    const nameScore = scoreOfName(chain.serverNames, serverName);
    if (nameScore < 0) continue;
    if (chain.applicationProtocols.length > 0 && !chain.applicationProtocols.some((name) => alpn.includes(name))) continue;
    const score = nameScore * 4 + (chain.transportProtocol === '' ? 0 : 2) + (chain.applicationProtocols.length > 0 ? 1 : 0);
    if (score > bestScore) {
      best = chain;
      bestScore = score;
    }
  }
  return best;
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

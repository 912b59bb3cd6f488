import type { ConnectionInfo } from '../net/connection-info.ts';
import { unknownPeer } from '../telemetry/peer-metadata.ts';
import { Endpoint } from './endpoint.ts';
import type { Transport } from './transport.ts';

/** Addresses that are remembered; the one that was made first and that nobody uses makes room. */
const maxEndpoints = 1024;

/**
 * The endpoints of an ORIGINAL_DST cluster (cluster.proto): it has none of its own, a call goes where its client was going. That is the
 * address from which the kernel redirected the connection; for a client that called us itself, the host that its request names.
 */
export class OriginalDestinations {
  readonly #endpoints: Map<string, Endpoint>;
  readonly #transport: Transport;
  readonly #defaultPort: number;
  readonly #isByName: boolean;

  /** `isByName`: the host that a request names decides, not where its connection was going. */
  constructor(transport: Transport, defaultPort: number, isByName = false) {
    this.#isByName = isByName;
    this.#endpoints = new Map();
    this.#transport = transport;
    this.#defaultPort = defaultPort;
  }

  /** `authority` is undefined for what is no HTTP. undefined: nothing says where to go, or too many places are in use. */
  endpointFor(info: ConnectionInfo, authority: string | undefined): Endpoint | undefined {
    if (info.isOriginalDestination && !this.#isByName) {
      const { localAddress, localPort } = info;
      const key = `${localAddress}|${localPort}`;
      return this.#endpoints.get(key) ?? this.#add(key, localAddress, localPort);
    }
    if (authority === undefined) return undefined;
    const known = this.#endpoints.get(authority);
    if (known !== undefined) return known;
    const [, host, port] = /^(.*?)(?::(\d{1,5}))?$/.exec(authority) ?? [];
    const number = Number(port ?? this.#defaultPort);
    return host && number <= 65_535 ? this.#add(authority, host.replace(/^\[|\]$/g, ''), number) : undefined;
  }

  values(): Iterable<Endpoint> {
    return this.#endpoints.values();
  }

  close(): void {
    for (const endpoint of this.#endpoints.values()) endpoint.remove();
    this.#endpoints.clear();
  }

  #add(key: string, address: string, port: number): Endpoint | undefined {
    if (this.#endpoints.size >= maxEndpoints && !this.#makeRoom()) return undefined;
    const endpoint = new Endpoint({ address, port, weight: 1, isHealthy: true, transport: this.#transport, peer: unknownPeer });
    this.#endpoints.set(key, endpoint);
    return endpoint;
  }

  #makeRoom(): boolean {
    for (const [key, endpoint] of this.#endpoints) {
      if (endpoint.activeRequests > 0 || endpoint.waiting.length + endpoint.waitingForStream.length > 0) continue;
      this.#endpoints.delete(key);
      endpoint.remove();
      return true;
    }
    return false;
  }
}

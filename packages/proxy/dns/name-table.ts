import { isIPv4, isIPv6, SocketAddress } from 'node:net';
import type { NameTable as NameTableMessage } from '@mizzen/envoy-api/gen/istio/networking/nds/v1/nds_pb.js';
import type { PackedAddress } from './dns-message.ts';

/** What the table knows of a name. */
export interface KnownName {
  /** The full name, where it was found by a shorter one or by way of a search domain. */
  readonly hostname: string;
  readonly ipv4: readonly PackedAddress[];
  readonly ipv6: readonly PackedAddress[];
  /** Nobody outside the mesh has anything to say of it: what the table does not know does not exist. */
  readonly isOfMesh: boolean;
  /** Its answers carry the name above in a CNAME. */
  readonly isAlias: boolean;
}

/**
 * The mesh's names, as the control plane tells them, ready to be looked up: full names, the shorter forms of a Kubernetes service's name,
 * wildcards, and what a resolver makes of a name by its search list (`api.example.com.default.svc.cluster.local`).
 */
export class NameTable {
  readonly #names: Map<string, KnownName>;
  readonly #searchDomains: readonly string[];

  constructor(message: NameTableMessage | undefined, namespace: string, searchDomains: readonly string[]) {
    this.#names = new Map();
    this.#searchDomains = searchDomains.map((domain) => `.${domain.toLowerCase()}`);
    for (const [host, info] of Object.entries(message?.table ?? {})) {
      const hostname = host.toLowerCase().replace(/\.$/, '');
      const known: KnownName = {
        hostname,
        ipv4: info.ips.filter((ip) => isIPv4(ip)).map(packAddress),
        ipv6: info.ips.filter((ip) => isIPv6(ip)).map(packAddress),
        isOfMesh: info.registry === 'Kubernetes',
        isAlias: false,
      };
      this.#names.set(hostname, known);
      if (info.registry !== 'Kubernetes' || !info.shortname) continue;
      const short = `${info.shortname}.${info.namespace}`.toLowerCase();
      const names = [`${short}.svc`, short, ...(info.namespace === namespace ? [info.shortname.toLowerCase()] : [])];
      for (const name of names) if (!this.#names.has(name)) this.#names.set(name, known);
    }
  }

  get size(): number {
    return this.#names.size;
  }

  /** `name` is in lower case and without the dot at its end. */
  find(name: string): KnownName | undefined {
    const exact = this.#names.get(name);
    if (exact !== undefined) return exact;
    for (const domain of this.#searchDomains) {
      if (!name.endsWith(domain)) continue;
      const found = this.#names.get(name.slice(0, -domain.length)) ?? this.#wildcard(name.slice(0, -domain.length));
      if (found !== undefined) return { ...found, hostname: found.hostname.startsWith('*') ? name.slice(0, -domain.length) : found.hostname, isAlias: true };
    }
    return this.#wildcard(name);
  }

  #wildcard(name: string): KnownName | undefined {
    for (let dot = name.indexOf('.'); dot >= 0; dot = name.indexOf('.', dot + 1)) {
      const found = this.#names.get(`*${name.slice(dot)}`);
      if (found !== undefined) return found;
    }
    return undefined;
  }
}

function packAddress(text: string): PackedAddress {
  if (isIPv4(text)) return Buffer.from(text.split('.').map(Number));
  // All eight groups, written out.
  const { address } = new SocketAddress({ address: text, family: 'ipv6' });
  const plain = address.includes('.') ? address.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, a, b, c, d) => `${hex(a, b)}:${hex(c, d)}`) : address;
  const [head = '', tail] = plain.split('::');
  const first = head === '' ? [] : head.split(':');
  const last = tail === undefined || tail === '' ? [] : tail.split(':');
  const groups = tail === undefined ? first : [...first, ...Array<string>(8 - first.length - last.length).fill('0'), ...last];
  const packed = Buffer.alloc(16);
  for (const [i, group] of groups.entries()) packed.writeUInt16BE(Number.parseInt(group, 16), i * 2);
  return packed;
}

const hex = (high: string, low: string) => ((Number(high) << 8) | Number(low)).toString(16);

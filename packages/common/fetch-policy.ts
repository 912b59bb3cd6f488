import { lookup as systemLookup } from 'node:dns';
import { BlockList, isIP, type LookupFunction } from 'node:net';
import { networkInterfaces } from 'node:os';

/**
 * Where URLs in configuration may lead. An operator of one namespace may write such a URL (`jwksUri`, `spiffeBundleUrl`, an ACME server), and the
 * control plane, or a gateway (login, keys of an Api), fetches it with its own place in the network: this machine's services and a cloud's metadata service are refused unless the mesh's
 * administrator allows them. Names are resolved here and the address that was verified is the one that is used, so that a name which changes its
 * address (DNS rebinding) does not pass.
 */
export class FetchPolicy {
  readonly #allowed: ReadonlySet<string>;
  /** As given. */
  readonly allowed: readonly string[];

  /** `allowed`: host names and addresses as they stand in URLs. */
  constructor(allowed: readonly string[] = []) {
    this.allowed = allowed;
    this.#allowed = new Set(allowed.map(bareHost));
  }

  /** The function by which a connection to the host resolves names. Throws Error, with the remedy, for an address that is refused. */
  lookupFor(url: string): LookupFunction | undefined {
    const host = bareHost(new URL(url).hostname);
    if (this.#allowed.has(host)) return undefined;
    if (isIP(host) !== 0) refuse(host, host);
    // RFC 6761, section 6.3: loopback, whatever a resolver says.
    if (host === 'localhost' || host.endsWith('.localhost')) refuse('127.0.0.1', host);
    return (name, options, callback) =>
      systemLookup(name, { ...options, all: true }, (error, addresses) => {
        const found = Array.isArray(addresses) ? addresses : [];
        try {
          for (const { address } of found) refuse(address, host);
        } catch (refusal) {
          return void callback(refusal as Error, [], 0);
        }
        const [first] = found;
        if (error !== null || first === undefined || options.all === true) callback(error, found);
        else callback(null, first.address, first.family);
      });
  }
}

const bareHost = (host: string) => host.toLowerCase().replace(/^\[|\]$|\.$/g, '');

const reserved = new BlockList();
for (const [network, prefix] of [
  ['0.0.0.0', 8],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['224.0.0.0', 3],
] as const)
  reserved.addSubnet(network, prefix, 'ipv4');
for (const [network, prefix] of [
  ['::', 127],
  ['fe80::', 10],
  ['ff00::', 8],
  // Teredo hides an IPv4 address; clouds have their metadata service here; site-local addresses are deprecated.
  ['2001::', 32],
  ['fd00:ec2::', 32],
  ['fec0::', 10],
] as const)
  reserved.addSubnet(network, prefix, 'ipv6');

function refuse(address: string, host: string): void {
  const plain = embeddedIPv4(address) ?? address;
  const isOwn = Object.values(networkInterfaces()).some((all) => all?.some((one) => one.address === plain));
  if (isOwn || reserved.check(plain, isIP(plain) === 6 ? 'ipv6' : 'ipv4'))
    throw new Error(
      `${host} is an address of this machine or a link-local one (${plain}): URLs in configuration may not lead there; \`mizzen control --allow-fetch ${host}\` allows it`,
    );
}

/** Prefixes behind which an IPv6 address holds an IPv4 address, and where: IPv4-mapped, -translated and -compatible addresses, NAT64 (RFC 6052, RFC 8215) and 6to4. */
const embeddings: readonly (readonly [prefix: readonly number[], at: number])[] = [
  [[0, 0, 0, 0, 0, 0xffff], 6],
  [[0, 0, 0, 0, 0xffff, 0], 6],
  [[0, 0, 0, 0, 0, 0], 6],
  [[0x64, 0xff9b, 0, 0, 0, 0], 6],
  [[0x64, 0xff9b, 1], 6],
  [[0x2002], 1],
];

/** The IPv4 address in an IPv6 address, however it is written; undefined: there is none. */
function embeddedIPv4(address: string): string | undefined {
  if (isIP(address) !== 6) return undefined;
  const [head = '', tail = ''] = new URL(`http://[${address.split('%')[0]}]`).hostname.slice(1, -1).split('::');
  const groups = (text: string) => (text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16)));
  const [before, after] = [groups(head), groups(tail)];
  const all = [...before, ...Array.from({ length: 8 - before.length - after.length }, () => 0), ...after];
  const [, at] = embeddings.find(([prefix]) => prefix.every((group, i) => all[i] === group)) ?? [];
  const [high, low] = at === undefined ? [] : all.slice(at, at + 2);
  return high === undefined || low === undefined || (high === 0 && low < 2) ? undefined : [high >> 8, high & 255, low >> 8, low & 255].join('.');
}

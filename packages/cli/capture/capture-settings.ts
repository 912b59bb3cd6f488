import { isIP } from 'node:net';
import { MizzenError } from '@mizzen/common';
import type { Cgroup } from './capture-cgroup.ts';

/** What of a workload's traffic is redirected to its sidecar. Names and defaults are those of Istio's annotations and ports. */
export interface CaptureSettings {
  /** The name of our table (nftables), and the beginning of the names of our chains (iptables). */
  readonly table: string;
  readonly outboundPort: number;
  /** undefined: what comes to the workload is left alone. */
  readonly inboundPort: number | undefined;
  /** undefined: queries for names are left alone. */
  readonly dnsPort: number | undefined;
  /** The sidecar's own traffic, which is never redirected. */
  readonly proxyUids: readonly number[];
  readonly proxyGids: readonly number[];
  readonly includeInboundPorts: '*' | readonly number[];
  readonly excludeInboundPorts: readonly number[];
  readonly includeOutboundRanges: '*' | readonly string[];
  readonly excludeOutboundRanges: readonly string[];
  /** Captured though their addresses are not in the included ranges. */
  readonly includeOutboundPorts: readonly number[];
  readonly excludeOutboundPorts: readonly number[];
  readonly excludeUids: readonly number[];
  readonly excludeGids: readonly number[];
  /** Only what this application sends is captured; undefined: what all processes send. */
  readonly only: CaptureSubject | undefined;
  readonly excludeInterfaces: readonly string[];
}

/** How the kernel's rules recognize the processes of one application: by a cgroup, which a process keeps when it changes its user or group, or by a group of their own. */
export type CaptureSubject = { readonly kind: 'cgroup'; readonly cgroup: Cgroup } | { readonly kind: 'group'; readonly gid: number };

/** Istio's: the ports of the sidecar itself that others may ask, and the one of its tunnels. */
const ownPorts = [15_008, 15_020, 15_021, 15_090];

export const defaultCapture: CaptureSettings = {
  table: 'mizzen',
  outboundPort: 15_001,
  inboundPort: 15_006,
  dnsPort: 15_053,
  proxyUids: [1337],
  proxyGids: [1337],
  includeInboundPorts: '*',
  excludeInboundPorts: ownPorts,
  includeOutboundRanges: '*',
  excludeOutboundRanges: [],
  includeOutboundPorts: [],
  excludeOutboundPorts: [],
  excludeUids: [],
  excludeGids: [],
  only: undefined,
  excludeInterfaces: [],
};

const prefix = 'traffic.sidecar.istio.io/';

/** Settings by Istio's annotations; other annotations are passed over. Throws MizzenError for a value that cannot be read. */
export function captureFromAnnotations(annotations: Readonly<Record<string, string>>, base: CaptureSettings = defaultCapture): CaptureSettings {
  const settings: { -readonly [Key in keyof CaptureSettings]: CaptureSettings[Key] } = { ...base };
  for (const [name, value] of Object.entries(annotations)) {
    if (!name.startsWith(prefix)) continue;
    switch (name.slice(prefix.length)) {
      case 'includeInboundPorts':
        settings.includeInboundPorts = value.trim() === '*' ? '*' : ports(value, name);
        break;
      case 'excludeInboundPorts':
        settings.excludeInboundPorts = [...ownPorts, ...ports(value, name)];
        break;
      case 'includeOutboundIPRanges':
        settings.includeOutboundRanges = value.trim() === '*' ? '*' : ranges(value, name);
        break;
      case 'excludeOutboundIPRanges':
        settings.excludeOutboundRanges = ranges(value, name);
        break;
      case 'includeOutboundPorts':
        settings.includeOutboundPorts = ports(value, name);
        break;
      case 'excludeOutboundPorts':
        settings.excludeOutboundPorts = ports(value, name);
        break;
      case 'excludeInterfaces':
        settings.excludeInterfaces = interfaces(value, name);
        break;
      default:
        throw new MizzenError('unknown-annotation', `the annotation ${name} is not known`);
    }
  }
  return settings;
}

const entries = (text: string) =>
  text
    .split(',')
    .map((entry) => entry.trim())
    .filter(Boolean);

/** `80,443`. */
export function ports(text: string, place: string): number[] {
  return entries(text).map((entry) => {
    const port = Number(entry);
    if (!/^\d{1,5}$/.test(entry) || port < 1 || port > 65_535)
      throw new MizzenError('bad-option', `${place}: ${JSON.stringify(entry)} is no port. Write numbers from 1 to 65535 with commas between them.`);
    return port;
  });
}

/** `10.0.0.0/8,fd00::/8`; an address alone is a range of one. */
export function ranges(text: string, place: string): string[] {
  return entries(text).map((entry) => {
    const [address = '', length, ...rest] = entry.split('/');
    const version = isIP(address);
    const most = version === 4 ? 32 : 128;
    const isRange = version !== 0 && rest.length === 0 && (length === undefined || (/^\d{1,3}$/.test(length) && Number(length) <= most));
    if (!isRange)
      throw new MizzenError('bad-option', `${place}: ${JSON.stringify(entry)} is no address range. Write 10.0.0.0/8 or fd00::/8, with commas between.`);
    return `${address}/${length ?? most}`;
  });
}

/** `1000,1001`. */
export function ids(text: string, place: string): number[] {
  return entries(text).map((entry) => {
    if (!/^\d{1,10}$/.test(entry)) throw new MizzenError('bad-option', `${place}: ${JSON.stringify(entry)} is no id: write numbers, names are not looked up`);
    return Number(entry);
  });
}

/** `eth1,docker0`; interface names have at most 15 characters, none of which means anything to a shell or to nft. */
export function interfaces(text: string, place: string): string[] {
  return entries(text).map((entry) => {
    if (!/^[A-Za-z0-9_.:@-]{1,15}$/.test(entry)) throw new MizzenError('bad-option', `${place}: ${JSON.stringify(entry)} is no name of a network interface`);
    return entry;
  });
}

import { nftPath } from './capture-cgroup.ts';
import type { CaptureSettings, CaptureSubject } from './capture-settings.ts';

/**
 * The rules of capture for nftables: one table for both IP versions, which replaces whatever table of that name was there, in one
 * transaction. What is redirected, and in which order that is decided, follows Istio's iptables rules (istio-iptables, mode REDIRECT).
 */
export function nftablesRules(settings: CaptureSettings): string {
  const { table } = settings;
  return `${[
    `table inet ${table} {}`,
    `delete table inet ${table}`,
    `table inet ${table} {`,
    ...(settings.inboundPort === undefined ? [] : inboundChains(settings, settings.inboundPort)),
    ...outboundChain(settings),
    '}',
  ].join('\n')}\n`;
}

export function nftablesRemoval(table: string): string {
  // Made first, so that its removal cannot fail for its absence.
  return `table inet ${table} {}\ndelete table inet ${table}\n`;
}

const set = (values: readonly (number | string)[]) => `{ ${values.join(', ')} }`;

function inboundChains(settings: CaptureSettings, inboundPort: number): string[] {
  const { excludeInboundPorts, includeInboundPorts, excludeInterfaces } = settings;
  return [
    '  chain to_workload {',
    ...(excludeInboundPorts.length > 0 ? [`    tcp dport ${set(excludeInboundPorts)} return`] : []),
    ...(includeInboundPorts === '*'
      ? [`    meta l4proto tcp redirect to :${inboundPort}`]
      : includeInboundPorts.length > 0
        ? [`    tcp dport ${set(includeInboundPorts)} redirect to :${inboundPort}`]
        : []),
    '  }',
    '  chain prerouting {',
    '    type nat hook prerouting priority -100; policy accept;',
    ...(excludeInterfaces.length > 0 ? [`    iifname ${set(excludeInterfaces.map((name) => `"${name}"`))} return`] : []),
    '    # only what is for this host: what it passes on to others is not ours',
    '    meta l4proto tcp fib daddr type local jump to_workload',
    '  }',
  ];
}

function outboundChain(settings: CaptureSettings): string[] {
  const { proxyUids, proxyGids, dnsPort, inboundPort, outboundPort, only } = settings;
  const owners = [...proxyUids.map((uid) => `meta skuid ${uid}`), ...proxyGids.map((gid) => `meta skgid ${gid}`)];
  const v4 = (range: string) => !range.includes(':');
  const excluded = settings.excludeOutboundRanges;
  const included = settings.includeOutboundRanges;
  const hook = '    type nat hook output priority -100; policy accept;';
  return [
    ...(only === undefined ? ['  chain output {', hook] : ['  chain of_application {']),
    ...(inboundPort === undefined
      ? []
      : [
          '    # from the sidecar to a port of the workload that nobody declared: it has been inspected already',
          '    oifname "lo" ip saddr 127.0.0.6 return',
          '    oifname "lo" ip6 saddr ::6 return',
          '    # from the sidecar to its own workload by its address, a service that calls itself: as if it came from outside',
          ...owners.flatMap((owner) => [
            `    oifname "lo" ${owner} ip daddr != 127.0.0.0/8 meta l4proto tcp jump to_workload`,
            `    oifname "lo" ${owner} ip6 daddr != ::1 meta l4proto tcp jump to_workload`,
          ]),
        ]),
    '    # what the sidecar sends itself',
    ...owners.map((owner) => `    ${owner} return`),
    ...(settings.excludeUids.length > 0 ? [`    meta skuid ${set(settings.excludeUids)} return`] : []),
    ...(settings.excludeGids.length > 0 ? [`    meta skgid ${set(settings.excludeGids)} return`] : []),
    ...(settings.excludeInterfaces.length > 0 ? [`    oifname ${set(settings.excludeInterfaces.map((name) => `"${name}"`))} return`] : []),
    ...(dnsPort === undefined ? [] : [`    udp dport 53 redirect to :${dnsPort}`, `    tcp dport 53 redirect to :${dnsPort}`]),
    '    # within this host',
    '    oifname "lo" return',
    ...(settings.excludeOutboundPorts.length > 0 ? [`    tcp dport ${set(settings.excludeOutboundPorts)} return`] : []),
    ...(excluded.some(v4) ? [`    ip daddr ${set(excluded.filter(v4))} return`] : []),
    ...(excluded.some((range) => !v4(range)) ? [`    ip6 daddr ${set(excluded.filter((range) => !v4(range)))} return`] : []),
    ...(settings.includeOutboundPorts.length > 0 ? [`    tcp dport ${set(settings.includeOutboundPorts)} redirect to :${outboundPort}`] : []),
    ...(included === '*'
      ? [`    meta l4proto tcp redirect to :${outboundPort}`]
      : [
          ...(included.some(v4) ? [`    ip daddr ${set(included.filter(v4))} meta l4proto tcp redirect to :${outboundPort}`] : []),
          ...(included.some((range) => !v4(range))
            ? [`    ip6 daddr ${set(included.filter((range) => !v4(range)))} meta l4proto tcp redirect to :${outboundPort}`]
            : []),
        ]),
    '  }',
    // A packet without a socket matches nothing, so that this must be what is captured, not what is not.
    ...(only === undefined ? [] : ['  chain output {', hook, `    ${subjectMatch(only)} counter jump of_application`, '  }']),
  ];
}

function subjectMatch(subject: CaptureSubject): string {
  return subject.kind === 'group' ? `meta skgid ${subject.gid}` : `socket cgroupv2 level ${subject.cgroup.level} "${nftPath(subject.cgroup)}"`;
}

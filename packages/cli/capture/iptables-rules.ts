import type { CaptureSettings, CaptureSubject } from './capture-settings.ts';

/**
 * The same rules as ./nftables-rules.ts for `iptables-restore --noflush` and `ip6tables-restore --noflush`: chains of our own, emptied and
 * filled in one transaction, and a jump to each from the built-in chain. `existing` is what `iptables-save -t nat` says, so that a
 * jump is not made twice, and one of other settings goes.
 */
export function iptablesRules(settings: CaptureSettings, version: 4 | 6, existing: string): string {
  const { inbound, output, workload } = chainNames(settings.table);
  const lines = ['*nat', `:${inbound} - [0:0]`, `:${workload} - [0:0]`, `:${output} - [0:0]`];
  const add = (chain: string, ...rule: string[]) => lines.push(`-A ${chain} ${rule.join(' ')}`);
  const isOfVersion = (range: string) => range.includes(':') === (version === 6);
  if (settings.inboundPort !== undefined) {
    const redirect = `-j REDIRECT --to-ports ${settings.inboundPort}`;
    for (const port of settings.excludeInboundPorts) add(workload, `-p tcp --dport ${port} -j RETURN`);
    if (settings.includeInboundPorts === '*') add(workload, `-p tcp ${redirect}`);
    else for (const port of settings.includeInboundPorts) add(workload, `-p tcp --dport ${port} ${redirect}`);
    for (const name of settings.excludeInterfaces) add(inbound, `-i ${name} -j RETURN`);
    add(inbound, `-p tcp -m addrtype --dst-type LOCAL -j ${workload}`);
  }
  const owners = [...settings.proxyUids.map((uid) => `-m owner --uid-owner ${uid}`), ...settings.proxyGids.map((gid) => `-m owner --gid-owner ${gid}`)];
  if (settings.inboundPort !== undefined) {
    add(output, `-o lo -s ${version === 4 ? '127.0.0.6/32' : '::6/128'} -j RETURN`);
    for (const owner of owners) add(output, `-o lo ! -d ${version === 4 ? '127.0.0.0/8' : '::1/128'} -p tcp ${owner} -j ${workload}`);
  }
  for (const owner of owners) add(output, `${owner} -j RETURN`);
  for (const uid of settings.excludeUids) add(output, `-m owner --uid-owner ${uid} -j RETURN`);
  for (const gid of settings.excludeGids) add(output, `-m owner --gid-owner ${gid} -j RETURN`);
  for (const name of settings.excludeInterfaces) add(output, `-o ${name} -j RETURN`);
  if (settings.dnsPort !== undefined)
    for (const protocol of ['udp', 'tcp']) add(output, `-p ${protocol} --dport 53 -j REDIRECT --to-ports ${settings.dnsPort}`);
  add(output, '-o lo -j RETURN');
  for (const port of settings.excludeOutboundPorts) add(output, `-p tcp --dport ${port} -j RETURN`);
  for (const range of settings.excludeOutboundRanges.filter(isOfVersion)) add(output, `-d ${range} -j RETURN`);
  const redirect = `-j REDIRECT --to-ports ${settings.outboundPort}`;
  for (const port of settings.includeOutboundPorts) add(output, `-p tcp --dport ${port} ${redirect}`);
  if (settings.includeOutboundRanges === '*') add(output, `-p tcp ${redirect}`);
  else for (const range of settings.includeOutboundRanges.filter(isOfVersion)) add(output, `-d ${range} -p tcp ${redirect}`);
  const jumps = [...(settings.inboundPort === undefined ? [] : [`PREROUTING -j ${inbound}`]), `OUTPUT ${subjectMatch(settings.only)}-j ${output}`];
  const present = jumpsIn(existing, settings.table);
  for (const jump of present) if (!jumps.includes(jump)) lines.push(`-D ${jump}`);
  for (const jump of jumps) if (!present.includes(jump)) lines.push(`-A ${jump}`);
  return `${[...lines, 'COMMIT'].join('\n')}\n`;
}

/** An application that alone is captured: what other processes send passes by. */
function subjectMatch(subject: CaptureSubject | undefined): string {
  if (subject === undefined) return '';
  return subject.kind === 'group' ? `-m owner --gid-owner ${subject.gid} ` : `-m cgroup --path ${subject.cgroup.path} `;
}

/** Takes away what `iptables-save -t nat` says is there of ours; '' when there is nothing. */
export function iptablesRemoval(table: string, existing: string): string {
  const chains = Object.values(chainNames(table)).filter((chain) => existing.includes(`\n:${chain} `));
  const jumps = jumpsIn(existing, table);
  if (chains.length === 0 && jumps.length === 0) return '';
  return `${['*nat', ...jumps.map((jump) => `-D ${jump}`), ...chains.map((chain) => `-F ${chain}`), ...chains.map((chain) => `-X ${chain}`), 'COMMIT'].join('\n')}\n`;
}

/** A name of a chain has at most 28 characters. */
function chainNames(table: string): { readonly inbound: string; readonly output: string; readonly workload: string } {
  const stem = table.toUpperCase();
  return { inbound: `${stem}_IN`, workload: `${stem}_WL`, output: `${stem}_OUT` };
}

/** The jumps to our chains from the built-in ones, as `CHAIN matches -j TARGET`. */
function jumpsIn(existing: string, table: string): string[] {
  const { inbound, output } = chainNames(table);
  return existing
    .split('\n')
    .filter((line) => (line.startsWith('-A PREROUTING ') || line.startsWith('-A OUTPUT ')) && (line.endsWith(`-j ${inbound}`) || line.endsWith(`-j ${output}`)))
    .map((line) => line.slice(3));
}

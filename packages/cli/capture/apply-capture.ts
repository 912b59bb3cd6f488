import { MizzenError } from '@mizzen/common';
import type { CaptureSettings } from './capture-settings.ts';
import { iptablesRemoval, iptablesRules } from './iptables-rules.ts';
import { nftablesRemoval, nftablesRules } from './nftables-rules.ts';
import { type ProgramResult, runProgram } from './run-program.ts';

export const captureEngines = ['nftables', 'iptables'] as const;
export type CaptureEngine = (typeof captureEngines)[number];

/** Where rules are made: in this process's network namespace, or in a named one. */
export interface CaptureOptions {
  readonly engine: CaptureEngine;
  readonly namespace?: string;
}

/** Where Istio sends connections to ports that nobody declared from; for IPv6 the address has to be made. */
const passthroughSourceIpv6 = '::6/128';

/**
 * Puts the rules in place of those of the same name: all of them or none, however often. Throws `no-privileges`, `no-nft` or
 * `no-iptables`, `capture-failed`.
 */
export async function applyCapture(settings: CaptureSettings, options: CaptureOptions): Promise<void> {
  if (options.engine === 'nftables') await mustRun(['nft', '-f', '-'], options, nftablesRules(settings));
  else await applyIptables(settings, options);
  // Fails where IPv6 is off, and where the address is there already; then there is nothing to do.
  if (settings.inboundPort !== undefined) await run(['ip', '-6', 'addr', 'add', passthroughSourceIpv6, 'dev', 'lo'], options);
}

/** Takes the rules away, if there are any. */
export async function removeCapture(table: string, options: CaptureOptions): Promise<void> {
  if (options.engine === 'nftables') {
    await mustRun(['nft', '-f', '-'], options, nftablesRemoval(table));
  } else {
    for (const version of [4, 6] as const) {
      const removal = iptablesRemoval(table, await savedRules(version, options));
      if (removal !== '') await mustRun([toolOf(version, 'restore'), '--noflush'], options, removal);
    }
  }
  await run(['ip', '-6', 'addr', 'del', passthroughSourceIpv6, 'dev', 'lo'], options);
}

/** What would be put in place, for people. */
export function describeCapture(settings: CaptureSettings, engine: CaptureEngine): string {
  if (engine === 'nftables') return `# nft -f -\n${nftablesRules(settings)}`;
  return `# iptables-restore --noflush\n${iptablesRules(settings, 4, '')}# ip6tables-restore --noflush\n${iptablesRules(settings, 6, '')}`;
}

/**
 * Rules that redirect the same traffic elsewhere: Istio's own, or ours by the other engine. Two that redirect would fight. Each as a line
 * for people; an empty list where nothing could be looked at (no nft: then there are no such rules that it would know of).
 */
export async function rulesInTheWay(table: string, options: CaptureOptions): Promise<string[]> {
  const listed = await run(['nft', 'list', 'ruleset'], options);
  const found: string[] = [];
  let current = '';
  for (const line of listed.output.split('\n')) {
    const [, family, name] = /^table (\S+) (\S+)/.exec(line) ?? [];
    if (family !== undefined) current = `${family} ${name}`;
    const isOurs = options.engine === 'nftables' ? current === `inet ${table}` : line.includes(table.toUpperCase());
    if (!isOurs && /\bISTIO_(?:OUTPUT|INBOUND|REDIRECT)\b/.test(line) && line.includes('chain '))
      found.push(`table ${current}: ${line.trim().replace(/ \{$/, '')} (Istio's; \`istio-iptables --cleanup-only\` removes it)`);
    if (options.engine === 'nftables' && line.includes(`chain ${table.toUpperCase()}_`))
      found.push(`table ${current}: ${line.trim().replace(/ \{$/, '')} (\`mizzen capture --remove --engine iptables\` removes it)`);
    if (options.engine === 'iptables' && family === 'inet' && name === table) found.push(`table inet ${table} (\`mizzen capture --remove\` removes it)`);
  }
  return [...new Set(found)];
}

async function applyIptables(settings: CaptureSettings, options: CaptureOptions): Promise<void> {
  const before = await savedRules(4, options);
  await mustRun([toolOf(4, 'restore'), '--noflush'], options, iptablesRules(settings, 4, before));
  try {
    await mustRun([toolOf(6, 'restore'), '--noflush'], options, iptablesRules(settings, 6, await savedRules(6, options)));
  } catch (error) {
    // Both versions or none.
    const removal = iptablesRemoval(settings.table, await savedRules(4, options));
    if (removal !== '') await run([toolOf(4, 'restore'), '--noflush'], options, removal);
    throw error;
  }
}

const toolOf = (version: 4 | 6, what: 'save' | 'restore') => `${version === 4 ? 'iptables' : 'ip6tables'}-${what}`;

async function savedRules(version: 4 | 6, options: CaptureOptions): Promise<string> {
  return mustRun([toolOf(version, 'save'), '-t', 'nat'], options);
}

function run(command: readonly string[], { namespace }: CaptureOptions, input?: string): Promise<ProgramResult> {
  return runProgram(namespace === undefined ? command : ['ip', 'netns', 'exec', namespace, ...command], input);
}

async function mustRun(command: readonly string[], options: CaptureOptions, input?: string): Promise<string> {
  const result = await run(command, options, input);
  if (result.code === 0) return result.output;
  const [program = ''] = command;
  const text = result.error.trim().split('\n').slice(0, 5).join('\n  ');
  if (result.code === undefined || /No such file or directory/.test(text))
    throw new MizzenError(
      program === 'nft' ? 'no-nft' : 'no-iptables',
      program === 'nft'
        ? 'the program nft was not found. Install it (Debian: apt-get install nftables), or use --engine iptables.'
        : `the program ${program} was not found. Install it (Debian: apt-get install iptables), or use --engine nftables.`,
    );
  if (/Operation not permitted|Permission denied|must be root/i.test(text))
    throw new MizzenError(
      'no-privileges',
      'capture changes the rules of the kernel, which needs root (CAP_NET_ADMIN). Without it HTTP_PROXY does: explicit capture.',
    );
  throw new MizzenError('capture-failed', `the rules were not taken, and none of them is in effect. ${program} says:\n  ${text}`);
}

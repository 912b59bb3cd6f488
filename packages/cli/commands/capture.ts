import { MizzenError } from '@mizzen/common';
import { applyCapture, type CaptureEngine, captureEngines, describeCapture, removeCapture, rulesInTheWay } from '../capture/apply-capture.ts';
import { type CaptureSettings, captureFromAnnotations, defaultCapture, ids, interfaces, ports, ranges } from '../capture/capture-settings.ts';
import { nameValues } from '../name-value.ts';
import { print } from '../output.ts';

export interface CaptureCommandOptions {
  readonly engine: string;
  readonly remove?: boolean;
  readonly dryRun?: boolean;
  readonly force?: boolean;
  readonly netns?: string;
  readonly annotation: readonly string[];
  readonly outboundPort?: string;
  readonly inboundPort?: string;
  readonly dnsPort?: string;
  /** commander: `--no-dns`. */
  readonly dns: boolean;
  readonly proxyUid?: string;
  readonly proxyGid?: string;
  readonly includeInboundPorts?: string;
  readonly excludeInboundPorts?: string;
  readonly includeOutboundRanges?: string;
  readonly excludeOutboundRanges?: string;
  readonly includeOutboundPorts?: string;
  readonly excludeOutboundPorts?: string;
  readonly excludeUids?: string;
  readonly excludeGids?: string;
  readonly excludeInterfaces?: string;
}

/** `mizzen capture`: the kernel's rules by which a workload's traffic goes to its sidecar. */
export async function capture(options: CaptureCommandOptions): Promise<void> {
  const engine = captureEngines.find((candidate) => candidate === options.engine);
  if (engine === undefined) throw new MizzenError('bad-option', `--engine ${options.engine} is not known: ${captureEngines.join(' or ')}`);
  const where = { engine, ...(options.netns === undefined ? {} : { namespace: options.netns }) };
  if (options.remove) {
    await removeCapture(defaultCapture.table, where);
    return print('captured no more: the rules are gone');
  }
  const settings = settingsOf(options);
  if (options.dryRun) return print(describeCapture(settings, engine).trimEnd());
  const others = await rulesInTheWay(settings.table, where);
  if (others.length > 0 && !options.force)
    throw new MizzenError(
      'rules-in-the-way',
      `other rules redirect traffic already, and two that do would fight:\n  ${others.join('\n  ')}\nRemove them, or say --force.`,
    );
  await applyCapture(settings, where);
  print(summary(settings, engine));
}

function settingsOf(options: CaptureCommandOptions): CaptureSettings {
  const base = captureFromAnnotations(nameValues(options.annotation, '--annotation'));
  const read = <Value>(text: string | undefined, option: string, reader: (text: string, place: string) => Value, otherwise: Value): Value =>
    text === undefined ? otherwise : reader(text, option);
  const port = (text: string, place: string) => {
    const [number, ...rest] = ports(text, place);
    if (number === undefined || rest.length > 0) throw new MizzenError('bad-option', `${place} takes one port`);
    return number;
  };
  const allOr =
    <Value>(reader: (text: string, place: string) => Value) =>
    (text: string, place: string): '*' | Value =>
      text.trim() === '*' ? '*' : reader(text, place);
  return {
    ...base,
    outboundPort: read(options.outboundPort, '--outbound-port', port, base.outboundPort),
    inboundPort: read(options.inboundPort, '--inbound-port', port, base.inboundPort!),
    dnsPort: options.dns ? read(options.dnsPort, '--dns-port', port, base.dnsPort!) : undefined,
    proxyUids: read(options.proxyUid, '--proxy-uid', ids, base.proxyUids as number[]),
    proxyGids: read(options.proxyGid, '--proxy-gid', ids, base.proxyGids as number[]),
    includeInboundPorts: read(options.includeInboundPorts, '--include-inbound-ports', allOr(ports), base.includeInboundPorts as number[] | '*'),
    excludeInboundPorts: [...base.excludeInboundPorts, ...read(options.excludeInboundPorts, '--exclude-inbound-ports', ports, [])],
    includeOutboundRanges: read(options.includeOutboundRanges, '--include-outbound-ranges', allOr(ranges), base.includeOutboundRanges as string[] | '*'),
    excludeOutboundRanges: read(options.excludeOutboundRanges, '--exclude-outbound-ranges', ranges, base.excludeOutboundRanges as string[]),
    includeOutboundPorts: read(options.includeOutboundPorts, '--include-outbound-ports', ports, base.includeOutboundPorts as number[]),
    excludeOutboundPorts: read(options.excludeOutboundPorts, '--exclude-outbound-ports', ports, base.excludeOutboundPorts as number[]),
    excludeUids: read(options.excludeUids, '--exclude-uids', ids, base.excludeUids as number[]),
    excludeGids: read(options.excludeGids, '--exclude-gids', ids, base.excludeGids as number[]),
    excludeInterfaces: read(options.excludeInterfaces, '--exclude-interfaces', interfaces, base.excludeInterfaces as string[]),
  };
}

function summary(settings: CaptureSettings, engine: CaptureEngine): string {
  return [
    `captured (${engine}): TCP that leaves goes to ${settings.outboundPort}, TCP that comes to ${settings.inboundPort}${settings.dnsPort === undefined ? '' : `, DNS to ${settings.dnsPort}`}`,
    `left alone: user ${settings.proxyUids.join(', ')} and group ${settings.proxyGids.join(', ')} (the sidecar), inbound ports ${settings.excludeInboundPorts.join(', ')}`,
    '`mizzen capture --remove` takes the rules away',
  ].join('\n');
}

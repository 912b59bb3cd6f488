import { formatDurationMs, MizzenError } from '@mizzen/common';
import type { Finding, ProxyStatus } from '@mizzen/control';
import { ApiClient } from '../api-client.ts';
import { controlAccess, homeOf } from '../home.ts';
import { formatTable, outputFormat, paint, print, printData } from '../output.ts';

export interface StatusOptions {
  readonly home?: string;
  readonly output?: string;
}

/** `mizzen status`: every proxy with the state of its configuration, and what is wrong in the mesh's. */
export async function status(options: StatusOptions): Promise<void> {
  const api = new ApiClient(controlAccess(homeOf(options.home)));
  try {
    const { proxies } = (await api.call('GET', '/mizzen/v1/proxies')).body as { proxies: ProxyStatus[] };
    // Control planes before this version have no counts of errors.
    const {
      findings,
      internalErrors = {},
      unattributedErrors = 0,
    } = (await api.call('GET', '/mizzen/v1/findings')).body as {
      readonly findings: Finding[];
      readonly internalErrors?: Readonly<Record<string, number>>;
      readonly unattributedErrors?: number;
    };
    const errors = describeErrors(internalErrors, unattributedErrors);
    const format = outputFormat(options.output);
    const degraded = degradations(proxies, findings);
    if (degraded.length > 0) process.exitCode = 1;
    if (format !== 'table') return printData({ proxies, findings, degraded, internalErrors, unattributedErrors }, format);
    if (proxies.length === 0) {
      print('no proxy is connected');
      return printFindings(findings, degraded, errors);
    }
    const cell = (proxy: ProxyStatus, type: string) => {
      const state = proxy.types[type];
      if (!state) return '-';
      return `${paintState(state.state)} ${state.version.slice(0, 6)}`;
    };
    const age = (proxy: ProxyStatus) => {
      const newest = Math.max(...Object.values(proxy.types).map((type) => Date.parse(type.acknowledgedAt ?? type.sentAt ?? proxy.connectedAt)));
      return formatDurationMs(Math.max(0, Date.now() - newest));
    };
    print(
      formatTable(
        ['PROXY', 'TYPE', 'STATE', 'CLUSTERS', 'ENDPOINTS', 'LISTENERS', 'ROUTES', 'SECRETS', 'AGE', 'VERSION'],
        proxies.map((proxy) => [
          `${proxy.namespace}/${proxy.name}`,
          proxy.type,
          paintState(proxy.state),
          cell(proxy, 'cluster'),
          cell(proxy, 'endpoint'),
          cell(proxy, 'listener'),
          cell(proxy, 'route'),
          cell(proxy, 'secret'),
          age(proxy),
          proxy.version,
        ]),
      ),
    );
    for (const proxy of proxies)
      for (const [type, state] of Object.entries(proxy.types))
        if (state.error) print(paint(`\n${proxy.name} refused its ${type} update: ${state.error}`, 'red'));
    printFindings(findings, degraded, errors);
  } finally {
    api.close();
  }
}

/** What keeps configuration from taking effect: refused by a proxy, not generated, or left out. Any of it makes the exit code 1. */
export function degradations(proxies: readonly ProxyStatus[], findings: readonly Finding[]): string[] {
  return [
    ...proxies.flatMap((proxy) =>
      Object.entries(proxy.types).flatMap(([type, { error }]) => (error ? [`${proxy.namespace}/${proxy.name} refused its ${type} update`] : [])),
    ),
    ...findings
      .filter(({ level }) => level === 'error')
      .map(({ object, code }) => (code === 'MZ0026' ? `${object} refuses changes [${code}]` : `${object} is not in effect as written [${code}]`)),
  ];
}

/** What the control plane has counted since its start; undefined: nothing. It has recovered from each, so the exit code does not depend on it. */
export function describeErrors(internalErrors: Readonly<Record<string, number>>, unattributedErrors: number): string | undefined {
  const counts = Object.entries(internalErrors).map(([place, count]) => `${place} ${count}`);
  if (unattributedErrors > 0) counts.push(`without a place ${unattributedErrors}`);
  if (counts.length === 0) return undefined;
  return `The control plane has counted internal errors since its start: ${counts.join(', ')}. Each ended one unit of work; the log of the control plane has the exceptions.`;
}

function printFindings(findings: readonly Finding[], degraded: readonly string[], errors: string | undefined): void {
  if (findings.length > 0)
    print(
      `\n${findings.map((finding) => `${finding.level.padEnd(7)} ${finding.place ? `${finding.place}: ` : ''}${finding.message} [${finding.code}]`).join('\n')}`,
    );
  if (errors !== undefined) print(paint(`\n${errors}`, 'yellow'));
  if (degraded.length > 0) print(paint(`\ndegraded:\n${degraded.map((one) => `  ${one}`).join('\n')}`, 'red'));
}

function paintState(state: ProxyStatus['state']): string {
  return paint(state, state === 'synced' ? 'green' : state === 'stale' ? 'yellow' : 'red');
}

/** The proxy that a person means: by name, by workload, or as NAMESPACE/NAME. */
export async function findProxy(api: ApiClient, name: string): Promise<ProxyStatus> {
  const { proxies } = (await api.call('GET', '/mizzen/v1/proxies')).body as { proxies: ProxyStatus[] };
  const found = proxies.find((proxy) => proxy.name === name || `${proxy.namespace}/${proxy.name}` === name) ?? proxies.find((proxy) => proxy.workload === name);
  if (!found) throw new MizzenError('no-such-proxy', `no proxy "${name}" is connected. Connected: ${proxies.map((proxy) => proxy.name).join(', ') || 'none'}.`);
  return found;
}

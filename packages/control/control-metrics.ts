import { internalErrors, unattributedErrors } from '@mizzen/common';
import type { Pilot } from './pilot/pilot.ts';

/** The control plane's own metrics, in the text format of Prometheus. Labels hold words of ours, no names of objects: any caller may read them. */
export function controlMetrics(pilot: Pilot): string {
  const lines: string[] = [];
  const write = (name: string, type: 'counter' | 'gauge', help: string, samples: Iterable<readonly [labels: string, value: number]>) => {
    lines.push(`# HELP mizzen_${name} ${help}`, `# TYPE mizzen_${name} ${type}`);
    for (const [labels, value] of samples) lines.push(`mizzen_${name}${labels === '' ? '' : `{${labels}}`} ${value}`);
  };
  const { excluded, failures } = pilot.isolation;
  const proxies = pilot.proxies();
  write(
    'control_excluded_objects',
    'gauge',
    'Objects that generation fails with: left out, or kept in the version before.',
    counted(excluded.map(({ stored, substitute }) => `kind="${stored.key.kind}",effect="${substitute === undefined ? 'left_out' : 'version_before'}"`)),
  );
  write('control_isolated_failures_total', 'counter', 'Failures of generation that were attributed to an object.', [['', failures]]);
  write('control_findings', 'gauge', 'Findings about the configuration.', counted(pilot.findings.map(({ level, code }) => `level="${level}",code="${code}"`)));
  write(
    'control_proxies',
    'gauge',
    'Connected proxies by the state of their configuration.',
    counted(proxies.map(({ state, type }) => `type="${type}",state="${state}"`)),
  );
  write('control_pushes_total', 'counter', 'Responses sent to proxies after a change.', [['', pilot.pushCount]]);
  // By the names that they have in every process of a mesh.
  write(
    'internal_errors_total',
    'counter',
    'Exceptions that ended one unit of work.',
    [...internalErrors()].map(([place, count]) => [`place="${place}"`, count] as const),
  );
  write('unattributed_errors_total', 'counter', 'Exceptions that met no boundary.', [['', unattributedErrors()]]);
  return `${lines.join('\n')}\n`;
}

function counted(labels: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const one of labels) counts.set(one, (counts.get(one) ?? 0) + 1);
  return counts;
}

const preload = new URL('./inject-faults.ts', import.meta.url).href;

/** The environment of a process whose boundaries throw once, at these entries; each process that it starts has the same faults. */
export function faultyProcess(faults: Readonly<Record<string, number>>): Record<string, string> {
  const list = Object.entries(faults).map(([place, at]) => `${place}=${at}`);
  return { NODE_OPTIONS: `${process.env['NODE_OPTIONS'] ?? ''} --import ${preload}`.trim(), TEST_FAULTS: list.join(',') };
}

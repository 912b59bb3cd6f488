import { readFileSync } from 'node:fs';
import { MizzenError } from '@mizzen/common';

/** What a process has to be, all of it, to have an identity (SPIRE's unix selectors). */
export interface ProcessSelectors {
  /** Effective user and group. */
  readonly uid?: number;
  readonly gid?: number;
  /** The same by the user's name. */
  readonly user?: string;
  readonly pid?: number;
  /** Of the program's file, all symbolic links resolved. */
  readonly path?: string;
  /** Of the program's file, hex. */
  readonly sha256?: string;
}

/** A service account for those processes that are as the selectors say. */
export interface WorkloadEntry {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly selectors: ProcessSelectors;
}

const selectorTypes = { uid: 'number', gid: 'number', pid: 'number', user: 'string', path: 'string', sha256: 'string' } as const;
const name = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/;

/** Reads `[{ namespace, serviceAccount, selectors }]`. Throws MizzenError `invalid-entries` with the place. */
export function readWorkloadEntries(value: unknown, place: string): WorkloadEntry[] {
  const wrong = (at: string, problem: string) => new MizzenError('invalid-entries', `${at} ${problem}`, place);
  if (!Array.isArray(value) || value.length === 0) throw wrong('entries', 'must be a list of { namespace, serviceAccount, selectors }, and not empty');
  return value.map((entry: unknown, i) => {
    const at = `entries[${i}]`;
    const { namespace = 'default', serviceAccount, selectors, ...others } = (entry ?? {}) as Partial<Record<string, unknown>>;
    for (const other of Object.keys(others)) throw wrong(`${at}.${other}`, 'is not known: namespace, serviceAccount, selectors');
    if (typeof namespace !== 'string' || !name.test(namespace)) throw wrong(`${at}.namespace`, 'must be the name of a namespace');
    if (typeof serviceAccount !== 'string' || !name.test(serviceAccount)) throw wrong(`${at}.serviceAccount`, 'must be the name of a service account');
    const given = Object.entries(typeof selectors === 'object' && selectors !== null ? selectors : {});
    if (given.length === 0) throw wrong(`${at}.selectors`, `must say which processes: at least one of ${Object.keys(selectorTypes).join(', ')}`);
    for (const [key, wanted] of given) {
      const type = Object.hasOwn(selectorTypes, key) ? selectorTypes[key as keyof typeof selectorTypes] : undefined;
      if (type === undefined) throw wrong(`${at}.selectors.${key}`, `is not known: ${Object.keys(selectorTypes).join(', ')}`);
      if (typeof wanted !== type || (type === 'number' && !Number.isInteger(wanted))) throw wrong(`${at}.selectors.${key}`, `must be a ${type}`);
      if (key === 'path' && !(wanted as string).startsWith('/')) throw wrong(`${at}.selectors.path`, 'must be a whole path');
      if (key === 'sha256' && !/^[0-9a-f]{64}$/.test(wanted as string)) throw wrong(`${at}.selectors.sha256`, 'must be 64 hexadecimal digits, small letters');
      if (key === 'user' && userId(wanted as string) === undefined) throw wrong(`${at}.selectors.user`, `: there is no user ${JSON.stringify(wanted)}`);
    }
    return { namespace, serviceAccount, selectors: selectors as ProcessSelectors };
  });
}

export function userId(user: string): number | undefined {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((one) => one.startsWith(`${user}:`));
  return line === undefined ? undefined : Number(line.split(':')[2]);
}

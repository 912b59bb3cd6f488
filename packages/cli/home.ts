import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { MizzenError } from '@mizzen/common';
import { homeFiles } from '@mizzen/control';

/** Where a mesh on this machine keeps its state: `--home`, else $MIZZEN_HOME, else ~/.mizzen. */
export function homeOf(option: string | undefined): string {
  return resolve(option ?? process.env['MIZZEN_HOME'] ?? join(homedir(), '.mizzen'));
}

/** How to reach the control plane whose home this is. */
export interface ControlAccess {
  readonly api: string;
  readonly xds: string;
  readonly token: string;
  readonly rootCertificate: string;
}

/** Of the mesh in this home; of others it has to be said. */
export function knownTrustDomain(home: string): string {
  const { endpoints } = homeFiles(home);
  const known = existsSync(endpoints) ? (JSON.parse(readFileSync(endpoints, 'utf8')) as { readonly trustDomain?: string }) : {};
  return known.trustDomain ?? 'cluster.local';
}

export function controlAccess(home: string): ControlAccess {
  const files = homeFiles(home);
  if (!existsSync(files.endpoints))
    throw new MizzenError(
      'no-mesh',
      'there is no mesh here. Start one with `npm start` or `mizzen up DIR`; if it has another home, name it with --home or MIZZEN_HOME.',
      home,
    );
  const { api, xds } = JSON.parse(readFileSync(files.endpoints, 'utf8')) as { api: string; xds: string };
  return { api, xds, token: readFileSync(files.adminToken, 'utf8').trim(), rootCertificate: readFileSync(files.rootCertificate, 'utf8') };
}

import { chownSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { maxSocketPathLength, type ProxyConfig } from '@mizzen/proxy';

/** Where an application finds the SPIFFE Workload API of its sidecar. */
export interface WorkloadApiPlace {
  readonly config: Pick<ProxyConfig, 'workloadApiSocket'>;
  /** SPIFFE Workload Endpoint, section 4: the variable that SPIFFE libraries read. */
  readonly env: Readonly<Record<string, string>>;
  remove(): void;
}

const longestPid = 4_194_304;

/** A folder that only this user may enter, or the sidecar's where that is another. Where the path would be too long for a socket there is no Workload API. */
export function workloadApiPlace(home: string, namespace: string, name: string, sidecarId?: number): WorkloadApiPlace {
  const path = join(home, 'spiffe', namespace, name, 'api.sock');
  if (Buffer.byteLength(`${path}.${longestPid}`) > maxSocketPathLength) return { config: {}, env: {}, remove() {} };
  const folder = dirname(path);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (sidecarId !== undefined) chownSync(folder, sidecarId, sidecarId);
  return {
    config: { workloadApiSocket: path },
    env: { SPIFFE_ENDPOINT_SOCKET: `unix://${path}` },
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}

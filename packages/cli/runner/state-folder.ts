import { chownSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { ProxyConfig } from '@mizzen/proxy';

/** Where a proxy of this machine keeps its last configuration while its runner supervises it. */
export interface StateFolder {
  readonly config: Pick<ProxyConfig, 'stateFolder'>;
  remove(): void;
}

/** An empty folder that only this user may enter, or the sidecar's where that is another: a new runner chooses new ports, so that an older state is of no use. */
export function emptyStateFolder(home: string, namespace: string, name: string, sidecarId?: number): StateFolder {
  const folder = join(home, 'proxies', namespace, `${name}.state`);
  const remove = () => rmSync(folder, { recursive: true, force: true });
  remove();
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (sidecarId !== undefined) chownSync(folder, sidecarId, sidecarId);
  return { config: { stateFolder: folder }, remove };
}

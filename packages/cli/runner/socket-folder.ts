import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { ProxyConfig } from '@mizzen/proxy';

/** The folder in which a Sidecar object may name Unix sockets for one workload, and which its application finds in `MIZZEN_SOCKETS`. */
export interface SocketFolder {
  readonly config: Pick<ProxyConfig, 'socketFolders'>;
  readonly env: Readonly<Record<string, string>>;
  remove(): void;
}

/** An empty folder that only this user may enter. */
export function emptySocketFolder(home: string, namespace: string, name: string, others: readonly string[] = []): SocketFolder {
  const folder = join(home, 'sockets', namespace, name);
  const remove = () => rmSync(folder, { recursive: true, force: true });
  remove();
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  return { config: { socketFolders: [folder, ...others] }, env: { MIZZEN_SOCKETS: folder }, remove };
}

import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** How this program starts itself for another role. */
export const mizzenCommand: readonly string[] = [process.execPath, ownFile()];

/** The launcher of the sources, or of the published form, where all code lies in one folder (scripts/build.mjs). */
function ownFile(): string {
  const [ofSources, published] = ['../bin/mizzen', './mizzen.js'].map((path) => fileURLToPath(new URL(path, import.meta.url)));
  return existsSync(ofSources!) ? ofSources! : published!;
}

/**
 * How it starts a proxy. A proxy is one event loop, and many of them share a machine with applications: the collector's helper threads
 * would cost more in switches than they save.
 */
export const proxyCommand: readonly string[] = [process.execPath, '--single-threaded-gc', ...mizzenCommand.slice(1), 'proxy'];

/** PATH with the Node that runs this program first, so that a workload's `node` is one that runs TypeScript. */
export function searchPath(): string {
  return `${dirname(process.execPath)}${delimiter}${process.env['PATH'] ?? ''}`;
}

export function isInPath(program: string, path = searchPath()): boolean {
  return path.split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

import { accessSync, constants } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** How this program starts itself for another role. */
export const mizzenCommand: readonly string[] = [process.execPath, fileURLToPath(new URL('../bin/mizzen', import.meta.url))];

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

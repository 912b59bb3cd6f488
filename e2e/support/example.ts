import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { mizzenCommand } from '../../packages/cli/runner/program.ts';

/** A copy of an example, run as a user would: by `mizzen up`, as processes. */
export class RunningExample {
  /** The copy: what is changed in it is followed. */
  readonly folder: string;
  /** What it has said so far. */
  readonly lines: readonly string[];
  readonly #home: string;
  readonly #child: ChildProcess;

  private constructor(home: string, folder: string, child: ChildProcess, lines: readonly string[]) {
    this.#home = home;
    this.folder = folder;
    this.#child = child;
    this.lines = lines;
  }

  /** `name`: a folder of examples/; `mesh`: what of it is given to `mizzen up`. */
  static async start(name: string, mesh = '.'): Promise<RunningExample> {
    const home = mkdtempSync(join(tmpdir(), `mizzen-${name}-`));
    const folder = join(home, name);
    cpSync(join(import.meta.dirname, '../../examples', name), folder, { recursive: true });
    const [program, ...args] = [...mizzenCommand, 'up', join(folder, mesh), '--home', join(home, 'state'), '--api-port', '0', '--xds-port', '0'];
    const child = spawn(program!, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const lines: string[] = [];
    await new Promise<void>((resolve, reject) => {
      child.once('exit', () => reject(new Error(lines.join('\n'))));
      createInterface({ input: child.stdout }).on('line', (line) => {
        lines.push(line);
        if (line.includes('Ctrl-C stops everything')) resolve();
      });
    });
    return new RunningExample(home, folder, child, lines);
  }

  /** The command line, for this mesh. Resolves to what it prints. */
  async mizzen(...args: readonly string[]): Promise<string> {
    const [program, ...first] = mizzenCommand;
    return (await promisify(execFile)(program!, [...first, ...args, '--home', join(this.#home, 'state')])).stdout;
  }

  async close(): Promise<void> {
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGINT');
    await exited;
    rmSync(this.#home, { recursive: true, force: true });
  }
}

import { type ChildProcess, type ExecFileException, execFile } from 'node:child_process';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('command');

export interface ProgramResult {
  /** undefined: the program is not there. */
  readonly code: number | undefined;
  readonly output: string;
  readonly error: string;
}

const timeoutMs = 20_000;

/** Runs one of the machine's own tools (ip, nft, tc...) to its end. Tools of administrators lie in sbin, which PATH may lack. */
export function runProgram(command: readonly string[], input?: string): Promise<ProgramResult> {
  const [program, ...args] = command;
  return new Promise((resolve) => {
    const done = (error: ExecFileException | null, output: string, stderr: string) => {
      const isMissing = error?.code === 'ENOENT';
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : 1;
      resolve({ code: isMissing ? undefined : code, output, error: stderr || (error === null ? '' : error.message) });
    };
    const settings = {
      timeout: timeoutMs,
      maxBuffer: 16 * 1024 * 1024,
      env: { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C' },
    };
    // Output that met an exception is incomplete: the program fails.
    const child: ChildProcess = boundary.own(execFile(program!, args, settings, done), () => child.kill());
    child.stdin?.end(input ?? '');
  });
}

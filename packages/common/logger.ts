import { BoundedOutput } from './bounded-output.ts';
import { printableJson, printableText } from './printable-text.ts';

/**
 * One line per event: time, level, scope, message and `key=value` fields, on standard error, so that standard output stays free
 * for what a command was asked to print. Never pass a key, token or header value of a peer that could be a credential.
 */
export type LogLevel = 'debug' | 'info' | 'warn' | 'error';
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

const rank: Readonly<Record<LogLevel, number>> = { debug: 0, info: 1, warn: 2, error: 3 };

export class Logger {
  readonly #scope: string;
  readonly #threshold: number;
  readonly #write: (line: string) => void;

  constructor(scope: string, level: LogLevel = 'info', write: (line: string) => void = (line) => standardError.write(line)) {
    this.#scope = scope;
    this.#threshold = rank[level];
    this.#write = write;
  }

  /** A logger for a part of this one's scope, at the same level. */
  child(scope: string): Logger {
    const level = (Object.keys(rank) as LogLevel[]).find((name) => rank[name] === this.#threshold)!;
    return new Logger(scope, level, this.#write);
  }

  debug(message: string, fields?: LogFields): void {
    this.#log('debug', message, fields);
  }
  info(message: string, fields?: LogFields): void {
    this.#log('info', message, fields);
  }
  warn(message: string, fields?: LogFields): void {
    this.#log('warn', message, fields);
  }
  error(message: string, fields?: LogFields): void {
    this.#log('error', message, fields);
  }

  #log(level: LogLevel, message: string, fields: LogFields | undefined): void {
    if (rank[level] < this.#threshold) return;
    let line = `${new Date().toISOString()} ${level.padEnd(5)} ${this.#scope}: ${printableText(message)}`;
    for (const [name, value] of Object.entries(fields ?? {})) {
      if (value !== undefined) line += ` ${name}=${/^[\w.:/@|-]*$/.test(String(value)) ? value : printableJson(value)}`;
    }
    this.#write(`${line}\n`);
  }
}

const standardError = new BoundedOutput(
  () => process.stderr,
  (lost) => `${new Date().toISOString()} warn  log: lines were lost while standard error took none lines=${lost}\n`,
);

/** Log lines that standard error has not taken and that the log has not mentioned yet. */
export function lostLogLines(): number {
  return standardError.lost;
}

/** Swallows everything; for tests and for library use. */
export const silentLogger = new Logger('', 'error', () => {});

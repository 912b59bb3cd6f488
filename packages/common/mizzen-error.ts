/**
 * An error that a person will read: what was wrong, where, and what to do about it. Each layer names its own `code`s; the code is
 * stable and may be tested or searched for, the message may be improved at any time.
 */
export class MizzenError extends Error {
  readonly code: string;
  /** Where the cause lies: `bookinfo.yaml:41:13`, an API object, or a peer's address. Empty when there is no such place. */
  readonly place: string;

  constructor(code: string, message: string, place = '', options?: ErrorOptions) {
    super(message, options);
    this.name = 'MizzenError';
    this.code = code;
    this.place = place;
  }

  /** `place: message`, the form that command line output and logs use. */
  describe(): string {
    return this.place ? `${this.place}: ${this.message}` : this.message;
  }
}

/** The text of anything that was thrown, without its stack. */
export function messageOf(error: unknown): string {
  if (error instanceof MizzenError) return error.describe();
  if (error instanceof AggregateError && error.errors.length > 0) return error.errors.map(messageOf).join('; ');
  return error instanceof Error ? error.message : String(error);
}

import type { EventEmitter } from 'node:events';

/**
 * Owned event emitters: what `ErrorBoundary.own` does. Node.js ends a process for an `error` event without listener, and for an exception in
 * any event handler. An owned emitter has a listener for `error`, and its `emit` catches: the exception is counted, and what the event was
 * about is ended.
 */
interface Boundary {
  enter(): void;
  caught(error: unknown): void;
  run(work: () => void): boolean;
}

/** Takes the place of the end of a unit: which event has met an exception, its values, and of what: an owned process, or one of its streams. */
export type FailedEvent = (event: string | symbol, values: readonly unknown[], emitter: EventEmitter) => void;

const repeating = new WeakSet<EventEmitter>();

/** Emits an event that must not be lost once more. Nothing follows when it meets an exception again. */
export function emitAgain(event: string | symbol, values: readonly unknown[], emitter: EventEmitter): void {
  if (repeating.has(emitter)) return;
  repeating.add(emitter);
  try {
    emitter.emit(event, ...values);
  } finally {
    repeating.delete(emitter);
  }
}

/** Events that hand over a new unit of work: its own events are guarded too. */
const handovers: ReadonlySet<unknown> = new Set(['connection', 'secureConnection', 'session', 'stream', 'request', 'upgrade', 'checkContinue', 'response']);
/** Events that end a unit, or that only Node.js listens to: injected faults there would hide what is tested. */
const notInjected: ReadonlySet<unknown> = new Set(['error', 'close', 'exit', 'newListener', 'removeListener', 'internalMessage']);
/** INTERNAL_ERROR of RFC 9113, section 7. */
const http2InternalError = 2;
const owned = new WeakSet<object>();

export function guardEvents<Emitter extends object>(boundary: Boundary, candidate: Emitter, fail: FailedEvent | undefined): Emitter {
  if (owned.has(candidate) || !isEmitter(candidate)) return candidate;
  owned.add(candidate);
  const emitter: EventEmitter = candidate;
  emitter.on('error', (error: unknown) => {
    // Peers cause the errors of connections, and `close` follows. Nothing else tells of the error of a server without another listener.
    if (isServer(emitter) && emitter.listenerCount('error') === 1) boundary.caught(error);
  });
  const emit = emitter.emit;
  emitter.emit = (event: string | symbol, ...values: unknown[]): boolean => {
    try {
      if (handovers.has(event)) for (const value of values) if (isObject(value)) guardEvents(boundary, value, undefined);
      if (!notInjected.has(event) && emitter.listenerCount(event) > 0) boundary.enter();
      return emit.call(emitter, event, ...values);
    } catch (error) {
      boundary.caught(error);
      boundary.run(() => (fail === undefined ? end(emitter, event, values, error) : fail(event, values, emitter)));
      return true;
    }
  };
  for (const stream of childStreams(emitter)) guardEvents(boundary, stream, fail ?? (() => {}));
  return candidate;
}

/**
 * Ends what an event was about: what it handed over, or else its emitter. A response that has not begun is a 500. Servers go on. The code that
 * waits for a server to listen, or for the response to a request, receives the error.
 */
function end(emitter: EventEmitter, event: string | symbol, values: readonly unknown[], error: unknown): void {
  if (event === 'listening' && emitter.listenerCount('error') > 1) {
    emitter.emit('error', error);
    return;
  }
  if (event === 'response' && isDestroyable(emitter) && !isHttp2Stream(emitter)) {
    emitter.destroy(error);
    return;
  }
  const units = values.filter(isDestroyable);
  const response = units.find((unit) => isUnsentResponse(unit)) as UnsentResponse | undefined;
  if (response !== undefined) {
    response.writeHead(500).end();
    return;
  }
  for (const unit of units) endUnit(unit);
  if (units.length === 0 && isDestroyable(emitter)) endUnit(emitter);
}

/** HTTP/2 streams are reset: to destroy the request or response of one does not end it. */
function endUnit(unit: { destroy(): void }): void {
  const { stream = unit } = unit as { stream?: unknown };
  if (isHttp2Stream(stream)) stream.close(http2InternalError);
  else unit.destroy();
}

function isHttp2Stream(value: unknown): value is { close(code: number): void } {
  return isObject(value) && 'rstCode' in value && typeof (value as { close?: unknown }).close === 'function';
}

interface UnsentResponse {
  writeHead(status: number): { end(): void };
}

function isUnsentResponse(unit: object): boolean {
  const { writeHead, headersSent } = unit as { writeHead?: unknown; headersSent?: unknown };
  return typeof writeHead === 'function' && headersSent === false;
}

function childStreams(emitter: EventEmitter): object[] {
  const { stdio, kill } = emitter as { stdio?: unknown; kill?: unknown };
  return typeof kill === 'function' && Array.isArray(stdio) ? stdio.filter(isObject) : [];
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null;
}

function isEmitter(value: object): value is EventEmitter & object {
  return typeof (value as { emit?: unknown }).emit === 'function' && typeof (value as { listenerCount?: unknown }).listenerCount === 'function';
}

function isServer(value: object): boolean {
  return typeof (value as { listen?: unknown }).listen === 'function';
}

function isDestroyable(value: unknown): value is { destroy(error?: unknown): void } {
  return isObject(value) && typeof (value as { destroy?: unknown }).destroy === 'function' && !isServer(value);
}

import { once } from 'node:events';
import { writeSync } from 'node:fs';
import { registerHooks } from 'node:module';
import { extname } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { type FilterDefinition, FilterHeaders, type LocalAnswer } from '@mizzen/filter';
import { type FromProcess, heartbeatMs, type ScriptCall, type ScriptResult, validatedResult } from './script-messages.ts';

/**
 * The process that runs a user's filter. It is a process because a thread is not a limit: V8 ends the whole process when one allocation of a
 * thread exceeds its heap. What the filter throws, leaks or never ends stays in here, and the proxy ends the process when it must. Messages
 * are lines of JSON: results on descriptor 3, written synchronously so that the proxy has them even when this process dies at once; calls on
 * descriptor 4, read by a thread that the filter cannot block and that ends the process with the proxy.
 */
const resultsDescriptor = 3;
const file = process.argv[2]!;

function send(message: FromProcess): void {
  const bytes = Buffer.from(`${JSON.stringify(message)}\n`);
  for (let at = 0; at < bytes.length; ) at += writeSync(resultsDescriptor, bytes, at);
}

// A filter finds the library that it is written with, independent of the folder of its file.
const libraries = new Map(['@mizzen/filter', '@mizzen/filter/testing'].map((specifier) => [specifier, import.meta.resolve(specifier)]));
registerHooks({
  resolve(specifier, context, nextResolve) {
    const url = libraries.get(specifier);
    return url === undefined ? nextResolve(specifier, context) : { url, shortCircuit: true };
  },
});

const configs = new Map<string, { readonly value: unknown } | { readonly problem: string }>();
const maxConfigs = 1_000;

function configOf(filter: FilterDefinition<unknown>, text: string): { readonly value: unknown } | { readonly problem: string } {
  let config = configs.get(text);
  if (config === undefined) {
    if (configs.size >= maxConfigs) configs.clear();
    const raw: unknown = text === '' ? undefined : JSON.parse(text);
    try {
      config = { value: filter.config === undefined ? raw : filter.config(raw) };
    } catch (error) {
      config = { problem: `its configuration is refused: ${describe(error)}` };
    }
    configs.set(text, config);
  }
  return config;
}

/** Never throws, whatever was thrown. */
function describe(error: unknown): string {
  try {
    return String(error instanceof Error ? error.message : error).slice(0, 1_000);
  } catch {
    return 'an exception that cannot be described';
  }
}

async function run(filter: FilterDefinition<unknown>, call: ScriptCall): Promise<unknown> {
  const config = configOf(filter, call.config);
  if ('problem' in config) return { kind: 'error', message: config.problem };
  const headers = new FilterHeaders(call.request.headers);
  const request = { ...call.request, headers };
  if (call.phase === 'request') {
    const answer: unknown = await filter.onRequest?.(request, config.value);
    if (answer !== undefined && answer !== null) {
      // It may have been made by a copy of the library that is not ours.
      const { status, body, headers: fields } = answer as LocalAnswer;
      if (!Number.isInteger(status) || typeof body !== 'string')
        return { kind: 'error', message: 'onRequest returned a value that is not a response of respond()' };
      return { kind: 'answer', status, body, headers: [...new FilterHeaders(Object.entries(fields ?? {}))] };
    }
    return { kind: 'continue', path: request.path === call.request.path ? undefined : request.path, headers: headers.isChanged ? [...headers] : undefined };
  }
  const response = { status: call.response!.status, headers: new FilterHeaders(call.response!.headers) };
  await filter.onResponse?.(response, request, config.value);
  return {
    kind: 'continue',
    status: response.status === call.response!.status ? undefined : response.status,
    headers: response.headers.isChanged ? [...response.headers] : undefined,
  };
}

function finish(id: number, outcome: unknown): void {
  let result: ScriptResult;
  try {
    result = validatedResult(outcome);
  } catch (error) {
    result = { kind: 'error', message: `its result cannot be read: ${describe(error)}` };
  }
  send({ kind: 'result', id, result });
}

// A promise that is not awaited, or a timer: the call has ended, or cannot be named.
process.on('uncaughtException', (error) => send({ kind: 'stray', message: describe(error) }));
process.on('unhandledRejection', (error) => send({ kind: 'stray', message: describe(error) }));
// An exception in the call that asks for it, instead of the end of the calls under way.
process.exit = () => {
  throw new Error('process.exit() is not available to a filter');
};

// A worker, so that an endless loop of the filter does not survive the proxy.
const reader = new Worker(fileURLToPath(new URL(`./script-reader${extname(import.meta.url)}`, import.meta.url)));
const isReading = once(reader, 'message');
try {
  const module = (await import(pathToFileURL(file).href)) as { readonly default?: FilterDefinition<unknown> };
  const filter = module.default;
  if (typeof filter !== 'object' || filter === null || typeof filter.name !== 'string')
    throw new Error('the file has no filter as its default export: export default defineFilter({ name: ..., ... })');
  await isReading;
  reader.on('message', (call: ScriptCall) => {
    // What runs until its first await is known to belong to this call.
    send({ kind: 'running', id: call.id });
    run(filter, call).then(
      (outcome) => finish(call.id, outcome),
      (error: unknown) => finish(call.id, { kind: 'error', message: describe(error) }),
    );
    send({ kind: 'running', id: 0 });
  });
  setInterval(() => send({ kind: 'beat' }), heartbeatMs);
  send({ kind: 'loaded', hasRequest: filter.onRequest !== undefined, hasResponse: filter.onResponse !== undefined });
} catch (error) {
  send({ kind: 'failed', message: describe(error) });
}

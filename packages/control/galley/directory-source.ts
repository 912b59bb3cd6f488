import { type FSWatcher, watch } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join, relative, resolve } from 'node:path';
import { decodeYaml, describeProblem, findKind, groupOf, nameOf, type SourcedResource } from '@mizzen/api';
import { errorBoundary, type Logger, messageOf } from '@mizzen/common';
import { ApiError } from './api-error.ts';
import { keyText, type ResourceKey } from './config-store.ts';
import { keyOf, type ResourceRegistry } from './resource-registry.ts';

const boundary = errorBoundary('directory.sync');

/**
 * Follows a folder of YAML files and keeps the configuration API in step with it: what a file says is applied, what it no longer says
 * is deleted, and a file that is wrong changes nothing until it is mended. The folder is one field manager among others, so an object
 * that a person changes through the API is taken back only when its file changes.
 */
export interface DirectorySourceOptions {
  readonly directory: string;
  readonly registry: ResourceRegistry;
  readonly logger: Logger;
  /** Called after each pass with what is wrong in which file; for output to people. */
  readonly onProblems?: (problems: readonly string[]) => void;
  /** How long a file must be quiet before it is read, in milliseconds. Editors write in several steps. */
  readonly settleMs?: number;
  /** How long an object must be missing from all files before it is deleted, in milliseconds. Default: 1000. */
  readonly removeAfterMs?: number;
  /** When a write that the store could not take is tried again, in milliseconds. Default: 5000. */
  readonly retryMs?: number;
  /** Called after each pass: files that resources name may have changed without them. */
  readonly onPass?: () => void;
}

const manager = 'mizzen-directory';
/** Where a resource was written that names other files. */
export const originFileAnnotation = 'mizzen.dev/origin-file';
const namesFiles = new Set(['Workload', 'Api']);
const maxFiles = 5_000;
const defaultRemoveAfterMs = 1_000;
const defaultRetryMs = 5_000;

export class DirectorySource {
  readonly #options: DirectorySourceOptions;
  /** What each file held when it was last good: path -> key text -> what was applied, as JSON. */
  readonly #applied: Map<string, Map<string, { key: ResourceKey; text: string }>>;
  readonly #reported: Map<string, string>;
  /** Objects that no file holds any more, by key text, with since when. */
  #missing: Map<string, number>;
  /** A write of the last pass failed for a reason that may pass. */
  #hasFailed: boolean;
  #retryTimer: NodeJS.Timeout | undefined;
  readonly #watchers: Map<string, { readonly watcher: FSWatcher; readonly identity: string | undefined }>;
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void>;
  #isClosed: boolean;

  constructor(options: DirectorySourceOptions) {
    this.#options = options;
    this.#applied = new Map();
    this.#reported = new Map();
    this.#missing = new Map();
    this.#hasFailed = false;
    this.#retryTimer = undefined;
    this.#watchers = new Map();
    this.#timer = undefined;
    this.#running = Promise.resolve();
    this.#isClosed = false;
  }

  /** Applies the folder once, then follows it. Resolves after the first pass. */
  async start(): Promise<void> {
    await this.sync();
    await this.#follow();
  }

  /** Reads the folder and applies the difference; passes never overlap. */
  sync(): Promise<void> {
    this.#running = this.#running
      .then(() => {
        boundary.enter();
        return this.#pass();
      })
      .catch((error: unknown) => {
        boundary.unexpected(error);
        this.#options.logger.error('the folder could not be read', { directory: this.#options.directory, error: messageOf(error) });
        this.#retryAfter(this.#retryMs);
      });
    return this.#running;
  }

  #retryAfter(delayMs: number): void {
    clearTimeout(this.#retryTimer);
    if (this.#isClosed) return;
    this.#retryTimer = boundary.after(
      delayMs + 1,
      () => this.#syncAndFollow(),
      () => this.#retryAfter(delayMs),
    );
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#retryTimer);
    for (const { watcher } of this.#watchers.values()) watcher.close();
    await this.#running;
  }

  #syncAndFollow(): void {
    boundary.start(
      () => this.sync().then(() => this.#follow()),
      () => this.#retryAfter(this.#retryMs),
    );
  }

  get #retryMs(): number {
    return this.#options.retryMs ?? defaultRetryMs;
  }

  /** Watches the folder and those below it; called after each pass, since there may be new ones. */
  async #follow(): Promise<void> {
    const trigger = () => {
      clearTimeout(this.#timer);
      if (this.#isClosed) return;
      this.#timer = boundary.after(
        this.#options.settleMs ?? 60,
        () => this.#syncAndFollow(),
        () => this.#retryAfter(this.#retryMs),
      );
    };
    const isFirst = this.#watchers.size === 0;
    let hasNew = false;
    const folders = [this.#options.directory, ...(await foldersBelow(this.#options.directory))];
    for (const gone of [...this.#watchers.keys()].filter((folder) => !folders.includes(folder))) this.#unwatch(gone);
    for (const folder of folders) {
      // The watcher of a folder that was removed reports nothing of one that has its name now. Inode numbers are used again.
      const found = await stat(folder, { bigint: true }).catch(() => undefined);
      const identity = found && `${found.dev} ${found.ino} ${found.birthtimeNs}`;
      if (this.#isClosed || (identity !== undefined && this.#watchers.get(folder)?.identity === identity)) continue;
      this.#unwatch(folder);
      try {
        const watcher = boundary.own(watch(folder, trigger), trigger);
        this.#watchers.set(folder, { watcher, identity });
        hasNew = true;
        watcher.on('error', () => this.#unwatch(folder));
      } catch (error) {
        this.#options.logger.warn('a folder cannot be followed: changes there need a restart', { folder, error: messageOf(error) });
      }
    }
    // What has changed in a new folder between the pass and the watcher was not reported.
    if (hasNew && !isFirst) trigger();
  }

  #unwatch(folder: string): void {
    this.#watchers.get(folder)?.watcher.close();
    this.#watchers.delete(folder);
  }

  async #pass(): Promise<void> {
    const problems: string[] = [];
    const files = await yamlFilesIn(this.#options.directory);
    const decoded = new Map<string, readonly SourcedResource[]>();
    for (const file of files) {
      const name = relative(process.cwd(), file).startsWith('..') ? file : relative(process.cwd(), file);
      let text: string;
      try {
        text = await readFile(file, 'utf8');
      } catch {
        continue; // removed since it was listed; the next pass sees that
      }
      const { resources, problems: found } = decodeYaml(text, name);
      if (found.length > 0) problems.push(...found.map((problem) => describeProblem(problem, name)));
      else decoded.set(file, resources);
    }
    this.#reportDuplicates(decoded, problems);
    // Namespaces first, so that one pass is enough whatever the order of files.
    const all = [...decoded].flatMap(([file, resources]) => resources.map((sourced) => ({ file, sourced })));
    all.sort((a, b) => Number(b.sourced.resource.kind === 'Namespace') - Number(a.sourced.resource.kind === 'Namespace'));
    const now = new Map<string, Map<string, { key: ResourceKey; text: string }>>();
    const missing = new Map<string, number>();
    this.#hasFailed = false;
    for (const { file, sourced } of all) await this.#apply(file, sourced, now, problems);
    for (const [file, before] of this.#applied) {
      const isBroken = files.includes(file) && !decoded.has(file);
      if (isBroken) now.set(file, before);
      else
        for (const [text, applied] of before) {
          if ([...now.values()].some((kept) => kept.has(text))) continue;
          // Editors and git truncate or remove a file before they write it: what is missing must stay missing.
          const since = this.#missing.get(text) ?? performance.now();
          const waitedMs = performance.now() - since;
          if (waitedMs < (this.#options.removeAfterMs ?? defaultRemoveAfterMs)) {
            missing.set(text, since);
            now.set(file, (now.get(file) ?? new Map()).set(text, applied));
          } else if (!(await this.#remove(applied.key, problems))) now.set(file, (now.get(file) ?? new Map()).set(text, applied));
        }
    }
    this.#missing = missing;
    this.#applied.clear();
    for (const [file, kept] of now) this.#applied.set(file, kept);
    this.#report(problems);
    this.#options.onPass?.();
    clearTimeout(this.#retryTimer);
    const againMs = missing.size > 0 ? (this.#options.removeAfterMs ?? defaultRemoveAfterMs) : this.#hasFailed ? this.#retryMs : undefined;
    if (againMs !== undefined) this.#retryAfter(againMs);
  }

  async #apply(
    file: string,
    { resource: written, origin }: SourcedResource,
    now: Map<string, Map<string, { key: ResourceKey; text: string }>>,
    problems: string[],
  ): Promise<void> {
    // Relative paths of these start at their file, so whoever reads them must know where that is.
    const resource = namesFiles.has(written.kind)
      ? { ...written, metadata: { ...written.metadata, annotations: { ...written.metadata.annotations, [originFileAnnotation]: resolve(file) } } }
      : written;
    const kind = findKind(groupOf(resource.apiVersion), resource.kind)!;
    const key = keyOf(kind, resource.metadata.namespace ?? '', resource.metadata.name);
    const text = JSON.stringify([resource, origin]);
    const before = this.#applied.get(file)?.get(keyText(key));
    const keep = () => now.set(file, (now.get(file) ?? new Map()).set(keyText(key), { key, text }));
    if (before?.text === text) return void keep();
    try {
      await this.#options.registry.apply(kind, key.namespace, key.name, resource as unknown as Record<string, unknown>, true, { manager, origin });
      keep();
      this.#options.logger.debug('applied', { resource: nameOf(resource), origin: `${origin.name}:${origin.line}` });
    } catch (error) {
      if (before) now.set(file, (now.get(file) ?? new Map()).set(keyText(key), before));
      // A change that the store could not take (no space left) is tried again; one that is refused waits for its file to change.
      if (!(error instanceof ApiError)) this.#hasFailed = true;
      problems.push(`${origin.name}:${origin.line}: ${error instanceof ApiError ? error.message : messageOf(error)}`);
    }
  }

  /** False: the store could not be written, so it has to be tried again. */
  async #remove(key: ResourceKey, problems: string[]): Promise<boolean> {
    try {
      if (await this.#options.registry.store.remove(key)) this.#options.logger.info('deleted, since its file no longer holds it', { resource: keyText(key) });
      return true;
    } catch (error) {
      this.#hasFailed = true;
      problems.push(`${keyText(key)} cannot be deleted: ${messageOf(error)}`);
      return false;
    }
  }

  #reportDuplicates(decoded: Map<string, readonly SourcedResource[]>, problems: string[]): void {
    const seen = new Map<string, string>();
    for (const [file, resources] of decoded) {
      const unique = resources.filter(({ resource, origin }) => {
        const text = `${groupOf(resource.apiVersion)}/${nameOf(resource)}`;
        const first = seen.get(text);
        if (first)
          problems.push(
            `${origin.name}:${origin.line}: ${nameOf(resource)} is already defined at ${first}: remove one of the two. The first one is in effect.`,
          );
        else seen.set(text, `${origin.name}:${origin.line}`);
        return !first;
      });
      decoded.set(file, unique);
    }
  }

  #report(problems: readonly string[]): void {
    const current = new Set(problems);
    const fresh = problems.filter((problem) => !this.#reported.has(problem));
    for (const problem of [...this.#reported.keys()]) if (!current.has(problem)) this.#reported.delete(problem);
    for (const problem of fresh) this.#reported.set(problem, problem);
    if (fresh.length > 0) this.#options.onProblems?.(fresh);
  }
}

async function foldersBelow(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { withFileTypes: true });
  const folders = entries.filter((entry) => entry.isDirectory() && isWorthReading(entry.name)).map((entry) => join(directory, entry.name));
  return [...folders, ...(await Promise.all(folders.map(foldersBelow))).flat()];
}

async function yamlFilesIn(directory: string): Promise<string[]> {
  const found: string[] = [];
  for (const folder of [directory, ...(await foldersBelow(directory))]) {
    for (const name of (await readdir(folder)).sort())
      if (/\.ya?ml$/.test(name) && (await stat(join(folder, name)).catch(() => undefined))?.isFile()) found.push(join(folder, name));
    if (found.length > maxFiles) throw new Error(`more than ${maxFiles} YAML files`);
  }
  return found;
}

/** Source folders of programs live beside the YAML in a folder of workloads; their dependencies hold YAML that is not ours. */
function isWorthReading(name: string): boolean {
  return !name.startsWith('.') && name !== 'node_modules' && name !== 'target' && name !== 'vendor';
}

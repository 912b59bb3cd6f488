import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import {
  decodeYaml,
  describeProblem,
  explainUnknownKind,
  findKind,
  findKindByWord,
  groupOf,
  type Kind,
  kinds,
  type Resource,
  type SourcedResource,
} from '@mizzen/api';
import { MizzenError } from '@mizzen/common';
import { stringify } from 'yaml';
import { ApiClient, ApiFailure, collectionPath } from '../api-client.ts';
import { controlAccess, homeOf } from '../home.ts';
import { formatTable, outputFormat, paint, print, printData, printError } from '../output.ts';

/** The commands on resources: apply, get, delete, api-resources. They speak the same API as kubectl. */
export interface ResourceOptions {
  readonly home?: string;
  readonly namespace?: string;
  readonly output?: string;
  readonly file?: readonly string[];
  readonly allNamespaces?: boolean;
  readonly selector?: string;
  readonly watch?: boolean;
}

/** Every document of the named files and folders (`-` is standard input), checked before anything is sent. */
function readFiles(paths: readonly string[], namespace: string | undefined): SourcedResource[] {
  const files = paths.flatMap((path) => {
    if (path === '-') return [path];
    if (!existsSync(path)) throw new MizzenError('no-such-file', 'this file does not exist', path);
    if (!statSync(path).isDirectory()) return [path];
    return readdirSync(path)
      .filter((name) => /\.(ya?ml|json)$/.test(name))
      .sort()
      .map((name) => join(path, name));
  });
  const resources: SourcedResource[] = [];
  const problems: string[] = [];
  for (const file of files) {
    const name = file === '-' ? 'standard input' : file;
    const decoded = decodeYaml(readFileSync(file === '-' ? 0 : file, 'utf8'), name, namespace === undefined ? {} : { defaultNamespace: namespace });
    resources.push(...decoded.resources);
    problems.push(...decoded.problems.map((problem) => describeProblem(problem, name)));
  }
  if (problems.length > 0) throw new MizzenError('invalid-resources', `${problems.join('\n')}\nNothing was changed.`);
  if (resources.length === 0) throw new MizzenError('no-resources', `no resources in ${files.join(', ') || paths.join(', ')}`);
  return resources;
}

function pathOf(kind: Kind, resource: Resource): string {
  return `${collectionPath(kind, resource.metadata.namespace)}/${resource.metadata.name}`;
}

async function withApi<Result>(options: ResourceOptions, use: (api: ApiClient) => Promise<Result>): Promise<Result> {
  const api = new ApiClient(controlAccess(homeOf(options.home)));
  try {
    return await use(api);
  } finally {
    api.close();
  }
}

export async function apply(options: ResourceOptions): Promise<void> {
  if (!options.file?.length) throw new MizzenError('bad-option', 'name at least one file or folder: mizzen apply -f FILE');
  const format = outputFormat(options.output);
  const resources = readFiles(options.file, options.namespace);
  const applied: unknown[] = [];
  const failures: string[] = [];
  await withApi(options, async (api) => {
    for (const { resource, origin } of resources) {
      const kind = findKind(groupOf(resource.apiVersion), resource.kind)!;
      const name = `${kind.singular}.${kind.group || 'core'}/${resource.metadata.name}`;
      try {
        const before = await api.call('GET', pathOf(kind, resource)).then(
          (answer) => answer.body as Resource,
          () => undefined,
        );
        const answer = await api.call('PATCH', `${pathOf(kind, resource)}?fieldManager=mizzen&force=true`, {
          body: resource,
          contentType: 'application/apply-patch+yaml',
          origin,
        });
        applied.push(answer.body);
        for (const warning of answer.warnings) printError(`${paint('warning', 'yellow')}: ${warning}`);
        const after = answer.body as Resource;
        if (format === 'table')
          print(
            `${name} ${before === undefined ? 'created' : before.metadata.resourceVersion === after.metadata.resourceVersion ? 'unchanged' : 'configured'}`,
          );
      } catch (error) {
        if (!(error instanceof ApiFailure)) throw error;
        failures.push(`${origin.name}:${origin.line}: ${error.message}`);
      }
    }
  });
  if (format !== 'table') printData(applied.length === 1 ? applied[0] : { apiVersion: 'v1', kind: 'List', items: applied }, format);
  if (failures.length > 0) throw new MizzenError('refused', failures.join('\n'));
}

function kindOf(word: string): Kind {
  const kind = findKindByWord(word);
  if (kind) return kind;
  const explained = explainUnknownKind('', word.charAt(0).toUpperCase() + word.slice(1));
  throw new MizzenError('unknown-kind', explained.includes('did you mean') ? explained : `there is no kind "${word}". \`mizzen api-resources\` lists all.`);
}

export async function get(words: readonly string[], options: ResourceOptions): Promise<void> {
  const [first = '', ...rest] = words;
  const targets = first.includes('/')
    ? words.map((word) => word.split('/') as [string, string])
    : rest.length > 0
      ? rest.map((name) => [first, name] as [string, string])
      : first.split(',').map((word) => [word, ''] as [string, string]);
  const format = outputFormat(options.output);
  await withApi(options, async (api) => {
    if (options.watch) return followKind(api, kindOf(targets[0]![0]), options);
    const found: Resource[] = [];
    const tables: string[] = [];
    for (const [word, name] of targets) {
      const kind = kindOf(word);
      const namespace = options.allNamespaces ? undefined : (options.namespace ?? 'default');
      const query = options.selector ? `?labelSelector=${encodeURIComponent(options.selector)}` : '';
      const path = name ? `${collectionPath(kind, namespace ?? 'default')}/${name}` : `${collectionPath(kind, namespace)}${query}`;
      if (format !== 'table') {
        const body = (await api.call('GET', path)).body as Resource & { items?: Resource[] };
        found.push(...(body.items ? body.items.map((item) => ({ ...item, apiVersion: body.apiVersion, kind: kind.kind })) : [body]));
        continue;
      }
      const table = (await api.call('GET', path, { accept: 'application/json;as=Table;v=v1;g=meta.k8s.io,application/json' })).body as Table;
      tables.push(
        table.rows.length === 0
          ? `no ${kind.plural} found${namespace ? ` in namespace ${namespace}` : ''}`
          : renderTable(table, options.allNamespaces === true),
      );
    }
    if (format === 'table') return print(tables.join('\n\n'));
    const shown = found.map(withoutManagedFields);
    printData(shown.length === 1 && targets.every(([, name]) => name) ? shown[0] : { apiVersion: 'v1', kind: 'List', items: shown }, format);
  });
}

interface Table {
  readonly columnDefinitions: readonly { readonly name: string }[];
  readonly rows: readonly { readonly cells: readonly unknown[]; readonly object: { readonly metadata: { readonly namespace?: string } } }[];
}

function renderTable(table: Table, withNamespace: boolean): string {
  const header = table.columnDefinitions.map((column) => column.name.toUpperCase());
  const rows = table.rows.map((row) => [...(withNamespace ? [row.object.metadata.namespace ?? ''] : []), ...row.cells.map(String)]);
  return formatTable(withNamespace ? ['NAMESPACE', ...header] : header, rows);
}

function withoutManagedFields(resource: Resource): unknown {
  const { managedFields: _, ...metadata } = resource.metadata;
  return { ...resource, metadata };
}

async function followKind(api: ApiClient, kind: Kind, options: ResourceOptions): Promise<void> {
  const namespace = options.allNamespaces ? undefined : (options.namespace ?? 'default');
  const format = outputFormat(options.output);
  const stop = api.watch(
    kind,
    namespace,
    (type, object: Resource) =>
      print(
        format === 'json'
          ? JSON.stringify({ type, object })
          : format === 'yaml'
            ? `---\n${stringify({ type, object })}`
            : `${new Date().toISOString().slice(11, 19)}  ${type.toLowerCase().padEnd(8)}  ${object.metadata.namespace ?? ''}/${object.metadata.name}`,
      ),
    (error) => printError(`the watch was lost (${error}); trying again`),
  );
  await new Promise<void>((resolve) => process.once('SIGINT', () => resolve()));
  stop();
}

export async function remove(words: readonly string[], options: ResourceOptions): Promise<void> {
  const targets: { kind: Kind; namespace: string | undefined; name: string }[] = [];
  if (options.file?.length) {
    for (const { resource } of readFiles(options.file, options.namespace))
      targets.push({ kind: findKind(groupOf(resource.apiVersion), resource.kind)!, namespace: resource.metadata.namespace, name: resource.metadata.name });
  } else {
    const [first = '', ...names] = words;
    const pairs = first.includes('/') ? words.map((word) => word.split('/') as [string, string]) : names.map((name) => [first, name] as [string, string]);
    if (pairs.length === 0) throw new MizzenError('bad-option', 'say what to delete: mizzen delete KIND NAME, or mizzen delete -f FILE');
    for (const [word, name] of pairs) targets.push({ kind: kindOf(word), namespace: options.namespace ?? 'default', name });
  }
  const failures: string[] = [];
  const deleted: unknown[] = [];
  await withApi(options, async (api) => {
    for (const { kind, namespace, name } of targets) {
      try {
        deleted.push((await api.call('DELETE', `${collectionPath(kind, namespace)}/${name}`)).body);
        if (outputFormat(options.output) === 'table') print(`${kind.singular}.${kind.group || 'core'}/${name} deleted`);
      } catch (error) {
        if (!(error instanceof ApiFailure)) throw error;
        failures.push(error.message);
      }
    }
  });
  const format = outputFormat(options.output);
  if (format !== 'table') printData(deleted, format);
  if (failures.length > 0) throw new MizzenError('refused', failures.join('\n'));
}

export function apiResources(options: ResourceOptions): void {
  const format = outputFormat(options.output);
  const rows = kinds.map((kind) => ({
    name: kind.plural,
    shortNames: kind.shortNames,
    group: kind.group,
    versions: kind.versions,
    namespaced: kind.isNamespaced,
    kind: kind.kind,
  }));
  if (format !== 'table') return printData(rows, format);
  print(
    formatTable(
      ['NAME', 'SHORT', 'API VERSION', 'NAMESPACED', 'KIND'],
      rows.map((row) => [
        row.name,
        row.shortNames.join(','),
        row.group ? `${row.group}/${row.versions[0]}` : row.versions[0]!,
        String(row.namespaced),
        row.kind,
      ]),
    ),
  );
}

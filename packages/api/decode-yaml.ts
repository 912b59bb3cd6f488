import { messageOf, type Origin } from '@mizzen/common';
import { parseYamlDocuments, type YamlDocument } from '@mizzen/common/bounded-yaml';
import { type Document, isMap, isNode, isSeq, LineCounter, type Node } from 'yaml';
import { decodeObject } from './decode-object.ts';
import type { Problem, SourcedResource } from './resource.ts';
import { isPlainObject } from './validate.ts';

/**
 * Reads multi-document YAML into checked resources, keeping for each of them, and for each object in its lists, the line it stands
 * on. A document with a problem yields its problems and no resource; the others of the file are not affected.
 */
export interface DecodedFile {
  readonly resources: readonly SourcedResource[];
  readonly problems: readonly Problem[];
}

export interface DecodeOptions {
  /** Given to namespaced resources that name none. */
  readonly defaultNamespace?: string;
}

export function decodeYaml(text: string, fileName: string, options: DecodeOptions = {}): DecodedFile {
  const lineCounter = new LineCounter();
  let documents: YamlDocument[];
  try {
    documents = parseYamlDocuments(text, lineCounter);
  } catch (error) {
    return { resources: [], problems: [{ code: 'invalid-yaml', path: '', message: messageOf(error), line: 1, column: 1 }] };
  }
  const resources: SourcedResource[] = [];
  const problems: Problem[] = [];
  for (const document of documents) decodeDocument(document, lineCounter, fileName, options, resources, problems);
  return { resources, problems };
}

function decodeDocument(
  parsed: YamlDocument,
  lineCounter: LineCounter,
  fileName: string,
  options: DecodeOptions,
  resources: SourcedResource[],
  problems: Problem[],
): void {
  const at = (offset: number | undefined) => {
    if (offset === undefined) return { line: 1, column: 1 };
    const { line, col } = lineCounter.linePos(offset);
    return { line, column: col };
  };
  const { document } = parsed;
  if (parsed.problems.length > 0) {
    for (const { message, offset } of parsed.problems) problems.push({ code: 'invalid-yaml', path: '', message, ...at(offset) });
    return;
  }
  let value: unknown;
  try {
    value = parsed.toJS();
  } catch (error) {
    problems.push({ code: 'invalid-yaml', path: '', message: messageOf(error), ...at(document.contents?.range?.[0]) });
    return;
  }
  if (value === null || value === undefined) return; // an empty document between two separators
  const contents = document.contents as Node;
  if (isPlainObject(value) && value['kind'] === 'List' && Array.isArray(value['items'])) {
    problems.push({
      code: 'unknown-kind',
      path: '',
      message: 'kind List is not taken from files: write its items as documents separated by ---',
      ...at(contents.range?.[0]),
    });
    return;
  }
  const origin: Origin = { source: 'file', name: fileName, ...at(contents.range?.[0]), lines: linesOfParts(contents, lineCounter) };
  const decoded = decodeObject(value, options);
  if ('resource' in decoded) resources.push({ resource: decoded.resource, origin });
  else for (const problem of decoded.problems) problems.push({ ...problem, ...at(offsetOf(document, problem)) });
}

/** Where to point for a problem: at the field, or at what should have held it. An unknown field is pointed at by its key, another by its value. */
function offsetOf(document: Document, problem: Problem): number | undefined {
  const steps = stepsOf(problem.path);
  for (let length = steps.length; length > 0; length--) {
    const parent = length === 1 ? document.contents : document.getIn(steps.slice(0, length - 1), true);
    const last = steps[length - 1]!;
    if (isMap(parent)) {
      const pair = parent.items.find((item) => String(isNode(item.key) && 'value' in item.key ? item.key.value : item.key) === last);
      const target = pair && (problem.code === 'unknown-field' || !isNode(pair.value) ? pair.key : pair.value);
      if (isNode(target)) return target.range?.[0];
    } else if (isSeq(parent)) {
      const item = parent.items[Number(last)];
      if (isNode(item)) return item.range?.[0];
    }
  }
  return document.contents?.range?.[0];
}

/** `spec.http[0].match` -> ['spec', 'http', 0, 'match']. */
function stepsOf(path: string): (string | number)[] {
  return [...path.matchAll(/[^.[\]]+|\[(\d+)\]/g)].map((match) => (match[1] === undefined ? match[0] : Number(match[1])));
}

/** Of the fields of `spec`, and of the objects in lists. */
function linesOfParts(root: Node, lineCounter: LineCounter): Record<string, number> {
  const lines: Record<string, number> = {};
  let budget = 2_000;
  const visit = (node: unknown, path: string): void => {
    if (isMap(node)) {
      for (const pair of node.items) {
        const key = isNode(pair.key) && 'value' in pair.key ? String(pair.key.value) : String(pair.key);
        if (path === 'spec' && isNode(pair.key) && pair.key.range) lines[`spec.${key}`] = lineCounter.linePos(pair.key.range[0]).line;
        visit(pair.value, path ? `${path}.${key}` : key);
      }
    } else if (isSeq(node)) {
      for (const [i, item] of node.items.entries()) {
        if (!isMap(item) || budget-- <= 0) continue;
        const offset = item.range?.[0];
        if (offset !== undefined) lines[`${path}[${i}]`] = lineCounter.linePos(offset).line;
        visit(item, `${path}[${i}]`);
      }
    }
  };
  visit(root, '');
  return lines;
}

/** `file:line:column: path: message`, as every command prints a problem. */
export function describeProblem(problem: Problem, fileName: string): string {
  const position = problem.line === undefined ? fileName : `${fileName}:${problem.line}:${problem.column ?? 1}`;
  return `${position}: ${problem.path ? `${problem.path}: ` : ''}${problem.message}`;
}

import { type Document, isAlias, isMap, isNode, isPair, isScalar, isSeq, type LineCounter, parseAllDocuments } from 'yaml';
import { MizzenError } from './mizzen-error.ts';

/**
 * YAML whose cost is proportional to its size. The library's own check for duplicate keys compares each key with every other, and it resolves
 * each alias by a search of the document: both are quadratic. This file checks keys by a set and limits aliases; nothing else parses YAML.
 */
export const yamlLimits = {
  /** Larger texts are refused before they are parsed. 4 MiB cost a few seconds of CPU. */
  maxBytes: 4 * 1024 * 1024,
  /** Aliases in one document, and nodes that one document may expand to for each ("billion laughs"). */
  maxAliases: 100,
  /** Deepest nesting of maps and lists. */
  maxDepth: 100,
  maxDocuments: 10_000,
} as const;

/** An error of a document, and where in the text it is. */
export interface YamlProblem {
  readonly message: string;
  readonly offset: number | undefined;
}

export interface YamlDocument {
  readonly document: Document;
  /** Syntax errors, duplicate keys, too many aliases, too deep nesting: five at most. */
  readonly problems: readonly YamlProblem[];
  /** The value of a document without problems. Throws when aliases expand too far. */
  toJS(): unknown;
}

/** Parses all documents of a text. Throws MizzenError `yaml-limit` for a text that is over a limit as a whole. */
export function parseYamlDocuments(text: string, lineCounter?: LineCounter, maxBytes: number = yamlLimits.maxBytes): YamlDocument[] {
  const refuse = (message: string) => new MizzenError('yaml-limit', message);
  if (Buffer.byteLength(text) > maxBytes) throw refuse(`the text is larger than ${maxBytes / 1024 / 1024} MiB: split it`);
  const depth = bracketDepth(text);
  if (depth > yamlLimits.maxDepth) throw refuse(`brackets are nested ${depth} deep; at most ${yamlLimits.maxDepth} are allowed`);
  const { stackTraceLimit } = Error;
  let parsed: ReturnType<typeof parseAllDocuments>;
  try {
    // Each syntax error is an object with a stack that no caller reads.
    Error.stackTraceLimit = 0;
    parsed = parseAllDocuments(text, { ...(lineCounter === undefined ? {} : { lineCounter }), prettyErrors: false, uniqueKeys: false, merge: true });
  } catch (error) {
    if (error instanceof RangeError) throw refuse(`the document is nested more than ${yamlLimits.maxDepth} levels deep`);
    throw error;
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
  }
  const documents = Array.isArray(parsed) ? parsed : [];
  if (documents.length > yamlLimits.maxDocuments) throw refuse(`the file holds more than ${yamlLimits.maxDocuments} documents: split it`);
  return documents.map((document) => ({
    document,
    problems: problemsOf(document),
    toJS: () => document.toJS({ maxAliasCount: yamlLimits.maxAliases }) as unknown,
  }));
}

/** The value of a text that holds one document; undefined for none. Throws MizzenError `invalid-yaml` or `yaml-limit`. */
export function parseYaml(text: string, maxBytes: number = yamlLimits.maxBytes): unknown {
  const [first, second] = parseYamlDocuments(text, undefined, maxBytes);
  if (first === undefined) return undefined;
  if (second !== undefined) throw new MizzenError('invalid-yaml', 'the text holds several documents; one is expected');
  const [problem] = first.problems;
  if (problem !== undefined) {
    const line = problem.offset === undefined ? '' : `line ${text.slice(0, problem.offset).split('\n').length}: `;
    throw new MizzenError('invalid-yaml', `${line}${problem.message}`);
  }
  return first.toJS();
}

/** Upper bound of flow nesting ([[[[...); block nesting is verified in the parsed document. Strings are counted too, which only errs high. */
function bracketDepth(text: string): number {
  let depth = 0;
  let deepest = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === 0x5b || code === 0x7b) deepest = Math.max(deepest, ++depth);
    else if ((code === 0x5d || code === 0x7d) && depth > 0) depth--;
    else if (code === 0x0a && depth > 0 && text.startsWith('---', i + 1)) depth = 0;
  }
  return deepest;
}

const maxProblems = 5;

/** The first line. The library reports that it ran out of stack as a syntax error. */
function messageOfError(message: string): string {
  return message.startsWith('Maximum call stack') ? `nested more than ${yamlLimits.maxDepth} levels deep` : (message.split('\n')[0] ?? '');
}

function problemsOf(document: Document): readonly YamlProblem[] {
  if (document.errors.length > 0)
    return document.errors.slice(0, maxProblems).map((error) => ({ message: messageOfError(error.message), offset: error.pos[0] }));
  const problems: YamlProblem[] = [];
  let aliases = 0;
  const add = (message: string, node: unknown) => problems.push({ message, offset: isNode(node) ? node.range?.[0] : undefined });
  const visit = (node: unknown, depth: number): void => {
    if (problems.length >= maxProblems) return;
    if (isAlias(node)) {
      if (++aliases === yamlLimits.maxAliases + 1) add(`more than ${yamlLimits.maxAliases} aliases: write the values out`, node);
    } else if (isMap(node) || isSeq(node)) {
      if (depth >= yamlLimits.maxDepth) return void add(`nested more than ${yamlLimits.maxDepth} levels deep`, node);
      const keys = new Set<string>();
      for (const item of node.items) {
        if (!isPair(item)) {
          visit(item, depth + 1);
          continue;
        }
        if (isScalar(item.key) && item.key.value !== '<<') {
          const key = `${typeof item.key.value} ${String(item.key.value)}`;
          if (keys.has(key)) add(`the key ${JSON.stringify(item.key.value)} occurs twice in one map`, item.key);
          keys.add(key);
        }
        visit(item.key, depth + 1);
        visit(item.value, depth + 1);
      }
    }
  };
  visit(document.contents, 0);
  return problems;
}

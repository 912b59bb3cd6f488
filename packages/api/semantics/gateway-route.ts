import type { Problem } from '../resource.ts';
import { isPlainObject } from '../validate.ts';
import { invalid } from './checks.ts';
import { regexProblem } from './regex.ts';

/**
 * Limits of HTTPRoute and GRPCRoute that the Gateway API states as patterns and lengths of its CRDs: names of headers, lengths of paths,
 * regular expressions. A proxy refuses what is beyond them.
 */
const headerName = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
/** httproute_types.go `HTTPPathMatch.Value`, `HTTPPathModifier`. */
const maxPathLength = 1024;
/** A prefix that is replaced becomes a regular expression, which has a limit of its own (`regexLimits.maxPatternLength`). */
const maxReplacedPrefixLength = 1000;

export function gatewayRouteProblems(spec: unknown): Problem[] {
  const problems: Problem[] = [];
  for (const { value, path, name } of membersOf(spec, 'spec', 'spec')) {
    if (name === 'requestHeaderModifier' || name === 'responseHeaderModifier') problems.push(...modifierProblems(value, path));
    else if (isPlainObject(value) && value['type'] === 'RegularExpression' && typeof value['value'] === 'string')
      problems.push(...[regexProblem(value['value'], `${path}.value`)].filter((problem) => problem !== undefined));
    else if (name === 'path' && isPlainObject(value)) problems.push(...pathProblems(value, path));
  }
  const rules = isPlainObject(spec) && Array.isArray(spec['rules']) ? spec['rules'] : [];
  for (const [i, rule] of rules.entries()) if (isPlainObject(rule)) problems.push(...replacedPrefixProblems(rule, `spec.rules[${i}]`));
  return problems;
}

function* membersOf(value: unknown, path: string, name: string): Generator<{ readonly value: unknown; readonly path: string; readonly name: string }> {
  yield { value, path, name };
  if (Array.isArray(value)) for (const [i, entry] of value.entries()) yield* membersOf(entry, `${path}[${i}]`, '');
  else if (isPlainObject(value)) for (const [key, member] of Object.entries(value)) yield* membersOf(member, `${path}.${key}`, key);
}

function modifierProblems(modifier: unknown, path: string): Problem[] {
  if (!isPlainObject(modifier)) return [];
  const named = (['set', 'add'] as const).flatMap((field) =>
    listOf(modifier[field]).map((entry, i) => ({ name: isPlainObject(entry) ? entry['name'] : undefined, at: `${path}.${field}[${i}].name` })),
  );
  const removed = listOf(modifier['remove']).map((name, i) => ({ name, at: `${path}.remove[${i}]` }));
  const isHost = (name: unknown) => typeof name === 'string' && /^(?:host|:authority)$/i.test(name);
  return [
    ...[...named, ...removed].flatMap(({ name, at }) =>
      typeof name === 'string' && !headerName.test(name) ? [invalid(at, `${quoted(name)} is not a header name (RFC 9110 section 5.1)`)] : [],
    ),
    ...removed.flatMap(({ name, at }) => (isHost(name) ? [invalid(at, 'a request needs its host: it cannot be removed')] : [])),
  ];
}

function pathProblems(match: Record<string, unknown>, path: string): Problem[] {
  return ['value', 'replaceFullPath', 'replacePrefixMatch'].flatMap((field) => {
    const text = match[field];
    return typeof text === 'string' && text.length > maxPathLength ? [invalid(`${path}.${field}`, `a path has at most ${maxPathLength} characters`)] : [];
  });
}

function replacedPrefixProblems(rule: Record<string, unknown>, path: string): Problem[] {
  if (![...membersOf(rule, '', '')].some(({ name }) => name === 'replacePrefixMatch')) return [];
  return listOf(rule['matches']).flatMap((match, i) => {
    const value = isPlainObject(match) && isPlainObject(match['path']) ? match['path']['value'] : undefined;
    if (typeof value !== 'string' || value.replace(/[^\w/-]/g, '\\$&').length <= maxReplacedPrefixLength) return [];
    return [
      invalid(`${path}.matches[${i}].path.value`, `a prefix that is replaced has at most ${maxReplacedPrefixLength} characters, punctuation counted twice`),
    ];
  });
}

const listOf = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
const quoted = (text: string) => JSON.stringify(text.slice(0, 80));

import type { Resource } from '@mizzen/api';
import { badRequest } from '../api-error.ts';

/** Label selectors (`a=b,c!=d,e in (f,g),!h`) and field selectors (`metadata.name=x`) of list and watch requests. */
export type Predicate = (resource: Resource) => boolean;

/** Of a requirement without white space at its ends and with single blanks within, so that no two parts of the expression compete for the same characters. */
const requirement = /^(?:(!) ?([\w./-]+)|([\w./-]+)(?: ?(==|=|!=) ?([\w.-]*)| (in|notin) ?\(([^)]*)\))?)$/;
/** Requirements of one selector. */
const maxRequirements = 200;

export function labelSelector(text: string | null): Predicate | undefined {
  if (!text) return undefined;
  const tests = atMost(splitOutsideBrackets(text)).map((part): Predicate => {
    const match = requirement.exec(part.trim().replaceAll(/\s+/g, ' '));
    if (!match) throw badRequest(`unable to parse the label selector ${JSON.stringify(part)}`);
    const [, not, absentKey, key, operator, value, setOperator, set] = match;
    if (not) return (resource) => resource.metadata.labels?.[absentKey!] === undefined;
    const labelOf = (resource: Resource) => resource.metadata.labels?.[key!];
    if (setOperator) {
      const values = set!.split(',').map((entry) => entry.trim());
      return setOperator === 'in' ? (resource) => values.includes(labelOf(resource) ?? '\0') : (resource) => !values.includes(labelOf(resource) ?? '\0');
    }
    if (!operator) return (resource) => labelOf(resource) !== undefined;
    return operator === '!=' ? (resource) => labelOf(resource) !== value : (resource) => labelOf(resource) === value;
  });
  return (resource) => tests.every((test) => test(resource));
}

export function fieldSelector(text: string | null): Predicate | undefined {
  if (!text) return undefined;
  const tests = atMost(text.split(',')).map((part): Predicate => {
    const match = /^([\w.]+)(==|=|!=)(.*)$/.exec(part.trim());
    if (!match) throw badRequest(`unable to parse the field selector ${JSON.stringify(part)}`);
    const [, path, operator, value] = match;
    return (resource) => {
      let at: unknown = resource;
      for (const name of path!.split('.')) at = (at as Record<string, unknown> | undefined)?.[name];
      return (String(at ?? '') === value) === (operator !== '!=');
    };
  });
  return (resource) => tests.every((test) => test(resource));
}

function atMost(parts: readonly string[]): readonly string[] {
  if (parts.length > maxRequirements) throw badRequest(`a selector may have at most ${maxRequirements} requirements, this one has ${parts.length}`);
  return parts;
}

function splitOutsideBrackets(text: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let start = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '(') depth++;
    else if (text[i] === ')') depth--;
    else if (text[i] === ',' && depth === 0) {
      parts.push(text.slice(start, i));
      start = i + 1;
    }
  }
  parts.push(text.slice(start));
  return parts;
}

/** What a list or a watch asks for, of what there is. */
export function predicateOf(parameters: URLSearchParams): Predicate {
  const tests = [labelSelector(parameters.get('labelSelector')), fieldSelector(parameters.get('fieldSelector'))].filter((test) => test !== undefined);
  return (resource) => tests.every((test) => test(resource));
}

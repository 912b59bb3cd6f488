import { messageOf } from '@mizzen/common';
import { compileRegex } from '@mizzen/common/linear-regex';
import type { Problem } from '../resource.ts';
import { invalid } from './checks.ts';

/** Regular expressions of users are RE2 (linear time); what RE2 does not have is refused here, not at the first request. */
export function regexProblem(pattern: string, path: string): Problem | undefined {
  if (pattern === '') return invalid(path, 'a regex must not be empty');
  try {
    compileRegex(pattern);
    return undefined;
  } catch (error) {
    return invalid(path, messageOf(error));
  }
}

/** In a substitution `\1` is the first group, `\\` a backslash. The pattern is a valid one. */
export function substitutionProblem(pattern: string, substitution: string, path: string): Problem | undefined {
  if (regexProblem(pattern, path) !== undefined) return undefined;
  const groups = compileRegex(pattern).groupCount();
  for (const [written, digit] of substitution.matchAll(/\\(\d|\\)?/g)) {
    if (digit === undefined) return invalid(path, 'a backslash must be followed by the number of a group, or by another backslash');
    if (digit !== '\\' && Number(digit) > groups) return invalid(path, `${written} is no group: the regex has ${groups}`);
  }
  return undefined;
}

import { RE2JS } from 're2js';
import { MizzenError } from './mizzen-error.ts';

/**
 * Regular expressions that users write: RE2, in linear time, and of a bounded size. Matching costs the length of the text times the size of the
 * program, so that a small pattern such as `(.*){500}` would cost a second for one path. Nothing else compiles a user's expression.
 * Syntax: https://github.com/google/re2/wiki/Syntax. Envoy's own bound on the size of a program: `re2.max_program_size.error_level`.
 */
export const regexLimits = {
  /** Characters of a pattern (Istio: 1,024). */
  maxPatternLength: 1024,
  /** Instructions of the compiled program. A UUID has 40, `.{1,1000}` has 2,001. */
  maxProgramSize: 3_000,
} as const;

/** Throws MizzenError `invalid-regex`, with the pattern and what is wrong with it. */
export function compileRegex(pattern: string): RE2JS {
  const refuse = (why: string) =>
    new MizzenError('invalid-regex', `${JSON.stringify(pattern.length > 80 ? `${pattern.slice(0, 80)}...` : pattern)} is not a valid RE2 expression: ${why}`);
  if (pattern.length > regexLimits.maxPatternLength) throw refuse(`it is longer than ${regexLimits.maxPatternLength} characters`);
  let compiled: RE2JS;
  try {
    compiled = RE2JS.compile(pattern);
  } catch (error) {
    throw refuse(error instanceof Error ? error.message : String(error));
  }
  const size = programSizeOf(compiled);
  if (size > regexLimits.maxProgramSize)
    throw refuse(`its program has ${size} instructions, at most ${regexLimits.maxProgramSize} are allowed: lower its repetition counts`);
  return compiled;
}

/** Instructions of a compiled expression: what one character of text can cost. */
export function programSizeOf(compiled: RE2JS): number {
  return compiled.programSize();
}

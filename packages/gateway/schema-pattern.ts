import { programSizeOf } from '@mizzen/common/linear-regex';
import { RE2JS } from 're2js';
import { charge, workLimits } from './work-budget.ts';

/** Documents describe long texts by patterns such as `^.{1,5000}$`; what they cost is charged to the message. */
const maxProgramSize = 20_000;

/** A pattern of a schema: RE2, found anywhere in the text (JSON Schema, section 6.3.3). Throws Error. */
export function compileRegex(pattern: string): { test(text: string): boolean } {
  let compiled: RE2JS;
  try {
    compiled = RE2JS.compile(pattern);
  } catch (error) {
    throw new Error(`${JSON.stringify(pattern)} is not a valid RE2 expression: ${error instanceof Error ? error.message : String(error)}`);
  }
  const size = programSizeOf(compiled);
  if (size > maxProgramSize) throw new Error(`the program of ${JSON.stringify(pattern)} has ${size} instructions, at most ${maxProgramSize} are allowed`);
  return {
    test(text) {
      charge(Math.ceil((text.length * size) / workLimits.regexStepsPerWork));
      return compiled.test(text);
    },
  };
}

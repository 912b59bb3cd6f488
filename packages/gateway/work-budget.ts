/**
 * How much work one message may cost. Validators of JSON Schema try every branch of `oneOf` at every level, which is exponential in the depth of
 * the message. Each evaluation of a schema is charged here, and the message is refused when its budget is used up. The budget is proportional to
 * the size of the message, and so is the cost.
 */
export const workLimits = {
  /** Evaluations of schemas that any message may cost: a few milliseconds. */
  baseWork: 20_000,
  /** Evaluations for each value in the message, in addition. */
  workPerValue: 100,
  /** Evaluations for the largest message: below a second of CPU. */
  maxWork: 2_000_000,
  /** Steps of a regular expression (characters times instructions) that count as one evaluation. */
  regexStepsPerWork: 256,
  /** Nesting of a message. */
  maxDepth: 64,
  /** Errors of one message that are reported. */
  maxErrors: 20,
  /** Characters of one error. */
  maxErrorLength: 500,
} as const;

export class WorkBudgetExceeded extends Error {}

let remaining = 0;

/** Runs a check within a budget for a message of so many values. Throws WorkBudgetExceeded. Checks do not nest: they are synchronous. */
export function withinBudget<T>(values: number, check: () => T): T {
  remaining = Math.min(workLimits.maxWork, workLimits.baseWork + values * workLimits.workPerValue);
  return check();
}

/** Throws WorkBudgetExceeded when nothing is left. */
export function charge(work: number): void {
  remaining -= work;
  if (remaining < 0) throw new WorkBudgetExceeded('validating the content takes more work than its size allows');
}

export interface MessageSize {
  readonly values: number;
  /** Members of its objects. */
  readonly members: number;
  readonly isTooDeep: boolean;
}

/** How large a message is; counting ends where it is nested too deep. */
export function measure(value: unknown, depth = 0): MessageSize {
  if (typeof value !== 'object' || value === null) return leaf;
  if (depth >= workLimits.maxDepth) return { values: 1, members: 0, isTooDeep: true };
  const parts: readonly unknown[] = Array.isArray(value) ? value : Object.values(value);
  let values = 1;
  let members = Array.isArray(value) ? 0 : parts.length;
  for (const part of parts) {
    const inner = measure(part, depth + 1);
    if (inner.isTooDeep) return inner;
    values += inner.values;
    members += inner.members;
  }
  return { values, members, isTooDeep: false };
}

const leaf: MessageSize = { values: 1, members: 0, isTooDeep: false };

import { type ASTNode, Environment } from '@marcbachmann/cel-js';
import { messageOf } from '@mizzen/common';
import { compileRegex, programSizeOf } from '@mizzen/common/linear-regex';
import type { RE2JS } from 're2js';

/**
 * CEL expressions over events, with a cost that follows the size of the event. CEL specifies RE2 for `matches`; the library uses a backtracking
 * engine, so each call of `matches` is replaced by one of our own. Comprehensions may nest only where the inner one walks a part of the outer
 * one's element, since everything else is quadratic in what the publisher sends.
 * Source: https://github.com/cel-expr/cel-spec/blob/master/doc/langdef.md#regular-expressions
 */
const matchesFunction = 'matchesInLinearTime__';
const comprehensions = new Set(['all', 'exists', 'exists_one', 'map', 'filter']);

export const celLimits = {
  maxExpressionLength: 4_096,
  /** Characters of text times instructions of the expression, for one call of `matches`: about 200 ms. */
  maxMatchSteps: 20_000_000,
} as const;

const maxCachedPatterns = 256;
const compiledPatterns = new Map<string, RE2JS>();

function patternOf(pattern: string): RE2JS {
  let compiled = compiledPatterns.get(pattern);
  if (compiled === undefined) {
    compiled = compileRegex(pattern);
    // Patterns may come out of events.
    if (compiledPatterns.size >= maxCachedPatterns) compiledPatterns.clear();
    compiledPatterns.set(pattern, compiled);
  }
  return compiled;
}

const environment = new Environment({ unlistedVariablesAreDyn: true }).registerFunction(
  `string.${matchesFunction}(string): bool`,
  (text: string, pattern: string) => {
    const compiled = patternOf(pattern);
    if (text.length * programSizeOf(compiled) > celLimits.maxMatchSteps) throw new Error('the text is too long for this regular expression');
    return compiled.test(text);
  },
);

/** Compiles an expression. Throws Error with the reason; what the result throws means that the expression has no value for that context. */
export function compileCel(expression: string): (context: Record<string, unknown>) => unknown {
  const refuse = (why: string) => new Error(`${JSON.stringify(expression.slice(0, 200))} is not a valid CEL expression: ${why}`);
  if (expression.length > celLimits.maxExpressionLength) throw refuse(`it is longer than ${celLimits.maxExpressionLength} characters`);
  try {
    const names: number[] = [];
    walk(environment.parse(expression).ast, [], (node) => {
      if (node.op === 'rcall' && node.args[0] === 'matches') names.push(nameOffset(expression, node));
      else if (node.op === 'rcall' && node.args[0] === matchesFunction) throw new Error(`${matchesFunction} is reserved`);
    });
    let rewritten = expression;
    for (const offset of names.sort((a, b) => b - a))
      rewritten = `${rewritten.slice(0, offset)}${matchesFunction}${rewritten.slice(offset + 'matches'.length)}`;
    const evaluate = environment.parse(rewritten);
    walk(evaluate.ast, [], (node) => {
      if (node.op !== 'rcall') return;
      if (node.args[0] === 'matches') throw new Error('a call of matches cannot be bound to RE2: write it without comments');
      const pattern = node.args[0] === matchesFunction ? node.args[2][0] : undefined;
      if (pattern?.op === 'value' && typeof pattern.args === 'string') compileRegex(pattern.args);
    });
    return evaluate as (context: Record<string, unknown>) => unknown;
  } catch (error) {
    throw refuse(messageOf(error).split('\n')[0] ?? '');
  }
}

/** Where the name of a method stands: between its receiver and its arguments. */
function nameOffset(expression: string, node: Extract<ASTNode, { op: 'rcall' }>): number {
  const [, receiver, callArguments] = node.args;
  const found = /\.\s*matches\s*\(/.exec(expression.slice(receiver.range.end, callArguments[0]?.range.start ?? node.range.end));
  if (found === null) throw new Error('a call of matches cannot be bound to RE2: write it without comments');
  return receiver.range.end + found.index + found[0].indexOf('matches');
}

/** Visits all nodes. Throws for a comprehension inside another one that does not walk the outer one's element. */
function walk(node: ASTNode, elements: readonly string[], visit: (node: ASTNode) => void): void {
  visit(node);
  if (node.op === 'rcall' && comprehensions.has(node.args[0])) {
    const [name, range, callArguments] = node.args;
    const [element, ...bodies] = callArguments;
    if (elements.length > 0 && !mentions(range, elements))
      throw new Error(`${name}() inside another comprehension must walk a part of the outer one's element: the cost would be quadratic`);
    walk(range, elements, visit);
    const inner = element?.op === 'id' ? [element.args] : [];
    for (const body of bodies) walk(body, inner, visit);
    return;
  }
  for (const child of childrenOf(node.args)) walk(child, elements, visit);
}

function mentions(node: ASTNode, names: readonly string[]): boolean {
  return (node.op === 'id' && names.includes(node.args)) || childrenOf(node.args).some((child) => mentions(child, names));
}

function childrenOf(args: unknown): ASTNode[] {
  if (Array.isArray(args)) return args.flatMap((arg) => (isNode(arg) ? [arg] : childrenOf(arg)));
  return isNode(args) ? [args] : [];
}

function isNode(value: unknown): value is ASTNode {
  return typeof value === 'object' && value !== null && 'op' in value && 'args' in value;
}

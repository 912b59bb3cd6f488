// The imports of a TypeScript file, by a real parser: over several lines, for types only, dynamic, in type positions, re-exports, and files
// that are loaded by `new URL('./x.ts', import.meta.url)`.
import { parseSync, Visitor } from 'oxc-parser';

/**
 * @param {string} name of the file: decides the language
 * @param {string} text
 * @returns {{ specifier: string, isType: boolean, isDynamic: boolean, line: number }[]}
 */
export function importsOf(name, text) {
  const { program, module, errors } = parseSync(name, text);
  if (errors.length > 0) throw new Error(`${name}: ${errors[0].message}`);
  const found = [];
  const add = (specifier, start, isType, isDynamic) => found.push({ specifier, isType, isDynamic, line: text.slice(0, start).split('\n').length });
  const isTypeStatement = (start) => /^(import|export)\s+type\b/.test(text.slice(start));
  for (const { moduleRequest, entries, start } of module.staticImports)
    add(moduleRequest.value, start, isTypeStatement(start) || (entries.length > 0 && entries.every((entry) => entry.isType)), false);
  for (const { entries, start } of module.staticExports) {
    // A name that one statement imports and another exports stands with the import, and has been counted.
    if (!text.startsWith('export', start)) continue;
    const from = entries.filter((entry) => entry.moduleRequest !== null);
    if (from.length > 0) add(from[0].moduleRequest.value, start, isTypeStatement(start) || from.every((entry) => entry.isType), false);
  }
  const literal = (node) => (node?.type === 'Literal' && typeof node.value === 'string' ? node.value : undefined);
  new Visitor({
    ImportExpression: (node) => {
      const specifier = literal(node.source);
      if (specifier !== undefined) add(specifier, node.start, false, true);
    },
    TSImportType: (node) => {
      const specifier = literal(node.source ?? node.argument?.literal ?? node.argument);
      if (specifier !== undefined) add(specifier, node.start, true, false);
    },
    NewExpression: (node) => {
      const [path, base] = node.arguments;
      const isOfThisFile = base?.type === 'MemberExpression' && base.object.type === 'MetaProperty' && base.property.name === 'url';
      const specifier = literal(path);
      if (node.callee.name === 'URL' && isOfThisFile && specifier !== undefined) add(specifier, node.start, false, true);
    },
  }).visit(program);
  return found;
}

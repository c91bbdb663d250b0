// Reads an AsyncAPI document with the parser of the AsyncAPI project and prints what it found, as JSON.
// Arguments: the document. The parser is looked for in the directory that the script was started in.
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const require = createRequire(pathToFileURL(join(process.cwd(), 'x.js')));
const { Parser, fromFile } = require('@asyncapi/parser');

const { document, diagnostics } = await fromFile(new Parser(), process.argv[2]).parse();
const found = diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path: path.join('.') }));
const operations = document === undefined ? [] : document.operations().all().map((one) => ({
  id: one.id(),
  action: one.action(),
  channels: one.channels().all().map((channel) => channel.address()),
  messages: one.messages().all().map((message) => message.name()),
}));
console.log(JSON.stringify({ found, operations }));

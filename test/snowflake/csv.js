// Reads CSV as COPY INTO reads it: RFC 4180, an unquoted empty field is NULL.
'use strict';

const zlib = require('zlib');
const { SqlError } = require('./sql');

// An error at a place in a file; COPY adds the file's name and the column's.
class RowError extends Error {
  constructor(error, line, character, row, column) {
    super(error.message);
    Object.assign(this, { error, line, character, row, column });
  }
}

class CsvReader {
  // onRow(fields, line, row, starts): fields are texts or null
  constructor(format, onRow) {
    Object.assign(this, { format, onRow });
    this.rest = '';
    this.line = 1;
    this.row = 0;
    this.skip = format.skipHeader;
    this.delimiter = format.fieldDelimiter;
    this.quote = format.enclosedBy;
  }

  // All of a file's bytes, compressed or not.
  async read(data) {
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: !this.format.skipBom });
    for await (const chunk of unzip(data, this.format.compression)) this.feed(this.decode(decoder, chunk));
    this.feed(this.decode(decoder, null), true);
  }

  decode(decoder, chunk) {
    try {
      return chunk ? decoder.decode(chunk, { stream: true }) : decoder.decode();
    } catch {
      throw new RowError(new SqlError('100144', 'Invalid UTF8 detected in string', '22000'), this.line, 1, this.row + 1, 0);
    }
  }

  // Reads the whole rows of what is there; an unfinished one waits.
  feed(text, last = false) {
    const source = this.rest + text;
    let pos = 0;
    while (pos < source.length) {
      const next = this.record(source, pos, last);
      if (next < 0) break;
      pos = next;
    }
    this.rest = source.slice(pos);
    if (last && this.rest !== '') this.fail('100064', 'End of file reached while expected to parse the end of a record', 0);
  }

  fail(code, message, character, column = 0) {
    throw new RowError(new SqlError(code, message, '22000'), this.line, character + 1, this.row + 1, column);
  }

  // One record from pos; where the next one begins, or -1 if it is not whole.
  record(source, pos, last) {
    const fields = [];
    const starts = [];
    const begin = pos;
    let lines = 0;
    for (;;) {
      starts.push(pos - begin + 1);
      let end;
      if (this.quote && source[pos] === this.quote) {
        const closed = this.quoted(source, pos + 1, begin, fields.length + 1);
        if (!closed) {
          if (last) this.fail('100064', 'End of file reached while a field is enclosed', pos - begin, fields.length + 1);
          return -1;
        }
        fields.push(closed.value);
        lines += closed.lines;
        end = closed.end;
      } else {
        end = this.plainEnd(source, pos);
        if (end >= source.length && !last) return -1;
        fields.push(this.plain(source, pos, end, begin, fields.length + 1));
      }
      if (end >= source.length) {
        if (!last) return -1;
        pos = end;
        break;
      }
      if (source.startsWith(this.delimiter, end)) {
        pos = end + this.delimiter.length;
        if (pos >= source.length && !last) return -1;
        continue;
      }
      if (source[end] === '\r' && source[end + 1] === undefined && !last) return -1;
      if (source[end] === '\r' && source[end + 1] === '\n') end++;
      if (source[end] !== '\n')
        this.fail('100016', `Found character '${source[end]}' instead of field delimiter '${this.delimiter}'`, end - begin, fields.length);
      pos = end + 1;
      break;
    }
    this.emit(fields, starts, pos === begin + 1 || (pos === begin + 2 && source[begin] === '\r'));
    this.line += lines + 1;
    return pos;
  }

  emit(fields, starts, blank) {
    if (this.skip > 0) {
      this.skip--;
      return;
    }
    if (blank) {
      if (this.format.skipBlank) return;
      this.fail('100066', 'End of record reached while expected to parse a column (the line is blank)', 0, 1);
    }
    this.row++;
    this.onRow(fields, this.line, this.row, starts);
  }

  quoted(source, from, begin, column) {
    let value = '';
    for (let pos = from; ; ) {
      const at = source.indexOf(this.quote, pos);
      if (at < 0 || at === source.length) return null;
      value += source.slice(pos, at);
      if (source[at + 1] === this.quote) {
        value += this.quote;
        pos = at + 2;
        continue;
      }
      const lines = value.includes('\n') ? value.split('\n').length - 1 : 0;
      return { value: this.nullIf(value, true), end: at + 1, lines };
    }
  }

  // Where an unquoted field ends.
  plainEnd(source, pos) {
    const delimiter = source.indexOf(this.delimiter, pos);
    const line = source.indexOf('\n', pos);
    let end = delimiter < 0 ? line : line < 0 ? delimiter : Math.min(delimiter, line);
    if (end < 0) return source.length;
    if (end === line && end > pos && source[end - 1] === '\r') end--;
    return end;
  }

  plain(source, pos, end, begin, column) {
    if (end === pos) return this.format.emptyIsNull ? null : '';
    const text = source.slice(pos, end);
    if (this.quote && text.includes(this.quote))
      this.fail('100065', `Found character '${this.quote}' in a field that is not enclosed`, pos - begin, column);
    return this.nullIf(this.format.escapeUnenclosed && text.includes('\\') ? unescape(text) : text, false);
  }

  nullIf(text) {
    return this.format.nullIf.includes(text) ? null : text;
  }
}

const unescape = (text) => text.replace(/\\(.)/gs, (_, c) => ({ n: '\n', t: '\t', r: '\r' })[c] ?? (c === 'N' ? '\\N' : c));

async function* unzip(data, compression) {
  if (compression === 'NONE' || (compression === 'AUTO' && !(data[0] === 0x1f && data[1] === 0x8b))) {
    if (data.length > 0) yield data;
    return;
  }
  const stream = zlib.createGunzip({ chunkSize: 1 << 20 });
  stream.end(data);
  try {
    for await (const chunk of stream) yield chunk;
  } catch (error) {
    if (error instanceof RowError) throw error;
    throw new SqlError('100068', `Invalid data encountered during decompression for file: '%s',compression type used: 'GZIP', cause: '${error.message}'`, '22000');
  }
}

module.exports = { CsvReader, RowError };

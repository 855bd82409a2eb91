/** `npm run reference`: writes what is made from the code (generated.ts) to where it is kept. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { generated } from './generated.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
for (const [file, make] of generated) {
  mkdirSync(dirname(join(root, file)), { recursive: true })
  writeFileSync(join(root, file), make())
  process.stdout.write(`${file}\n`)
}

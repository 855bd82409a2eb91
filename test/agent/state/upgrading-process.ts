/** For upgrade.test.ts, which kills it: brings a database of an older agent to the versions of today. `node upgrading-process.ts PATH`. */
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { openDatabase } from '../../../agent/state/database.ts'

const [, , path = ''] = process.argv
process.stdout.write('opens\n')
const db = openDatabase(path)
process.stdout.write('changes\n')
new BlobIndex(db)
db.close()
process.stdout.write('done\n')

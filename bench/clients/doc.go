// Package clients drives a real coffer daemon with the clients that people have: rclone, s3cmd, aws cli, boto3, minio-go and
// aws-sdk-go-v2, all over TLS with the private CA. It is a module of its own, so that their dependencies stay out of the product's.
//
// It promises that each test uses a data directory of its own, that nothing of it is left behind, and that what did not run is
// counted and named at the end of the output with its reason: an absent client is never a silent success. What needs more
// than a killed process is shown on disks that log their writes (TestPowerCut), where the tools for it are; package disk simulates much more
// of it.
//
// COFFER_SOAK=1 selects the long form, COFFER_BIN a binary other than the one built from the tree, and COFFER_TEST_DIR where the
// disks go if the directory for temporary files lies in memory.
package clients

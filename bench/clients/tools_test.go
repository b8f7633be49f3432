package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Where a copier puts what it copies.
const (
	treePrefix = "tree/"
	largeKey   = "large"
)

// copier is a client, reduced to what the matrix asks of each. up and put make the bucket if need be.
type copier interface {
	// absent tells why the client cannot run here, "" if it can.
	absent() string
	up(ctx context.Context, s *server, bucket, dir string) error   // the files of dir to treePrefix
	down(ctx context.Context, s *server, bucket, dir string) error // treePrefix to dir
	put(ctx context.Context, s *server, bucket, file string) error // file to largeKey, in parts
	get(ctx context.Context, s *server, bucket, file string) error
	remove(ctx context.Context, s *server, bucket string) error // the bucket and what is in it
}

// copiers are all clients of the matrix.
func copiers() map[string]copier {
	return map[string]copier{
		"rclone": rclone{}, "s3cmd": s3cmd{}, "aws-cli": awsCLI{}, "boto3": boto3{},
		"minio-go": minioGo{}, "aws-sdk-go-v2": awsSDK{},
	}
}

// command runs a client until it ends; its output is in the error.
func command(ctx context.Context, s *server, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(cleanEnv(), env...)
	cmd.Dir = s.scratch
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out[max(0, len(out)-2000):])
	}
	return nil
}

func notOnPath(name string) string {
	if _, err := exec.LookPath(name); err != nil {
		return name + " is not installed"
	}
	return ""
}

type rclone struct{}

func (rclone) absent() string { return notOnPath("rclone") }

func rcloneEnv(s *server) []string {
	return []string{
		"RCLONE_CONFIG=" + filepath.Join(s.scratch, "rclone.conf"), "RCLONE_CA_CERT=" + s.caFile(),
		"RCLONE_CONFIG_C_TYPE=s3", "RCLONE_CONFIG_C_PROVIDER=Other", "RCLONE_CONFIG_C_REGION=us-east-1",
		"RCLONE_CONFIG_C_ENDPOINT=" + s.endpoint(),
		"RCLONE_CONFIG_C_ACCESS_KEY_ID=" + s.access, "RCLONE_CONFIG_C_SECRET_ACCESS_KEY=" + s.secret,
		"RCLONE_S3_CHUNK_SIZE=16M", "RCLONE_S3_UPLOAD_CUTOFF=16M", "RCLONE_TRANSFERS=16", "RCLONE_CHECKERS=16",
	}
}

func (rclone) run(ctx context.Context, s *server, args ...string) error {
	return command(ctx, s, rcloneEnv(s), "rclone", args...)
}

func (r rclone) up(ctx context.Context, s *server, bucket, dir string) error {
	return r.run(ctx, s, "copy", dir, "c:"+bucket+"/"+treePrefix)
}

func (r rclone) down(ctx context.Context, s *server, bucket, dir string) error {
	return r.run(ctx, s, "copy", "c:"+bucket+"/"+treePrefix, dir)
}

func (r rclone) put(ctx context.Context, s *server, bucket, file string) error {
	return r.run(ctx, s, "copyto", file, "c:"+bucket+"/"+largeKey)
}

func (r rclone) get(ctx context.Context, s *server, bucket, file string) error {
	return r.run(ctx, s, "copyto", "c:"+bucket+"/"+largeKey, file)
}

func (r rclone) remove(ctx context.Context, s *server, bucket string) error {
	return r.run(ctx, s, "purge", "c:"+bucket)
}

type s3cmd struct{}

func (s3cmd) absent() string { return notOnPath("s3cmd") }

func (s3cmd) run(ctx context.Context, s *server, args ...string) error {
	conf := filepath.Join(s.scratch, "s3cfg")
	text := fmt.Sprintf("[default]\naccess_key = %s\nsecret_key = %s\nhost_base = %s\nhost_bucket = %s\nuse_https = True\nca_certs_file = %s\n",
		s.access, s.secret, s.https, s.https, s.caFile())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	return command(ctx, s, nil, "s3cmd", append([]string{"-c", conf, "--no-progress", "-q"}, args...)...)
}

func (c s3cmd) up(ctx context.Context, s *server, bucket, dir string) error {
	if err := c.run(ctx, s, "mb", "s3://"+bucket); err != nil {
		return err
	}
	return c.run(ctx, s, "sync", dir+"/", "s3://"+bucket+"/"+treePrefix)
}

func (c s3cmd) down(ctx context.Context, s *server, bucket, dir string) error {
	return c.run(ctx, s, "sync", "s3://"+bucket+"/"+treePrefix, dir+"/")
}

func (c s3cmd) put(ctx context.Context, s *server, bucket, file string) error {
	return c.run(ctx, s, "put", file, "s3://"+bucket+"/"+largeKey)
}

func (c s3cmd) get(ctx context.Context, s *server, bucket, file string) error {
	return c.run(ctx, s, "get", "s3://"+bucket+"/"+largeKey, file)
}

func (c s3cmd) remove(ctx context.Context, s *server, bucket string) error {
	return c.run(ctx, s, "rb", "--recursive", "--force", "s3://"+bucket)
}

// awsEnv is for what is built on botocore.
func awsEnv(s *server) []string {
	nowhere := filepath.Join(s.scratch, "absent")
	return []string{
		"AWS_CA_BUNDLE=" + s.caFile(), "AWS_DEFAULT_REGION=us-east-1", "AWS_ENDPOINT_URL=" + s.endpoint(),
		"AWS_ACCESS_KEY_ID=" + s.access, "AWS_SECRET_ACCESS_KEY=" + s.secret,
		"AWS_CONFIG_FILE=" + nowhere, "AWS_SHARED_CREDENTIALS_FILE=" + nowhere, "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=",
	}
}

type awsCLI struct{}

func (awsCLI) absent() string { return notOnPath("aws") }

func (awsCLI) run(ctx context.Context, s *server, args ...string) error {
	return command(ctx, s, awsEnv(s), "aws", append([]string{"--endpoint-url", s.endpoint(), "s3"}, args...)...)
}

func (a awsCLI) up(ctx context.Context, s *server, bucket, dir string) error {
	if err := a.run(ctx, s, "mb", "s3://"+bucket); err != nil {
		return err
	}
	return a.run(ctx, s, "cp", "--recursive", "--only-show-errors", dir, "s3://"+bucket+"/"+treePrefix)
}

func (a awsCLI) down(ctx context.Context, s *server, bucket, dir string) error {
	return a.run(ctx, s, "cp", "--recursive", "--only-show-errors", "s3://"+bucket+"/"+treePrefix, dir)
}

func (a awsCLI) put(ctx context.Context, s *server, bucket, file string) error {
	return a.run(ctx, s, "cp", "--only-show-errors", file, "s3://"+bucket+"/"+largeKey)
}

func (a awsCLI) get(ctx context.Context, s *server, bucket, file string) error {
	return a.run(ctx, s, "cp", "--only-show-errors", "s3://"+bucket+"/"+largeKey, file)
}

func (a awsCLI) remove(ctx context.Context, s *server, bucket string) error {
	return a.run(ctx, s, "rb", "--force", "s3://"+bucket)
}

type boto3 struct{}

func (boto3) absent() string {
	if why := notOnPath("python3"); why != "" {
		return why
	}
	if exec.Command("python3", "-c", "import boto3").Run() != nil {
		return "boto3 is not installed"
	}
	return ""
}

func (boto3) run(ctx context.Context, s *server, args ...string) error {
	script, err := filepath.Abs("testdata/boto3_copy.py")
	if err != nil {
		return err
	}
	return command(ctx, s, awsEnv(s), "python3", append([]string{script}, args...)...)
}

func (b boto3) up(ctx context.Context, s *server, bucket, dir string) error {
	return b.run(ctx, s, "up", bucket, dir)
}

func (b boto3) down(ctx context.Context, s *server, bucket, dir string) error {
	return b.run(ctx, s, "down", bucket, dir)
}

func (b boto3) put(ctx context.Context, s *server, bucket, file string) error {
	return b.run(ctx, s, "put", bucket, file)
}

func (b boto3) get(ctx context.Context, s *server, bucket, file string) error {
	return b.run(ctx, s, "get", bucket, file)
}

func (b boto3) remove(ctx context.Context, s *server, bucket string) error {
	return b.run(ctx, s, "remove", bucket)
}

// present skips the test if the client is absent.
func present(t *testing.T, c copier) {
	t.Helper()
	if why := c.absent(); why != "" {
		counts.skip(t, why)
	}
}

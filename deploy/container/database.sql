-- Once, when the database's volume is empty.
CREATE ROLE keypeer LOGIN;
CREATE DATABASE keypeer OWNER keypeer;
